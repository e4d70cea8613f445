"""What the pipelines return."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class ScoreSdePipelineOutput(BaseOutput):
    """Output of the pipelines that make images.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            PIL images; an array of shape (B, H, W, C) in [0, 1]; a tensor of shape (B, C, H, W) in [0, 1]; or, as
            "latent", the final state in the data range of the network. `output["sample"]` is the same, as published
            model cards write it.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor

    def __getitem__(self, key):
        return self.images if key == "sample" else super().__getitem__(key)
