"""What the networks share at their edges: output class, checks of the input, noise levels of label grids."""

import math
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput


@dataclass
class ScoreNetworkOutput(BaseOutput):
    """Output of a score network.

    Args:
        sample: tensor of shape (B, C_out, H, W): the score (VE) or epsilon (VP, sub-VP).
    """

    sample: torch.Tensor


def check_sample(sample: torch.Tensor, in_channels: int, factor: int) -> None:
    """Check that `sample` is a batch of images that a network takes.

    Args:
        sample: tensor that should have shape (B, in_channels, H, W).
        in_channels: channels of the network's input.
        factor: number of which height and width must be multiples.

    Raises:
        ValueError: if the number of dimensions, channels or pixels does not fit.
    """
    if sample.ndim != 4 or sample.shape[1] != in_channels:
        raise ValueError(
            f"`sample` has shape {tuple(sample.shape)}; this network takes (batch, {in_channels}, height, width). "
            "Convert the images or load a network with that number of channels."
        )
    height, width = sample.shape[2:]
    if height < factor or width < factor or height % factor or width % factor:
        raise ValueError(
            f"`sample` is {height} x {width} pixels; height and width must be positive multiples of {factor}. Pad or "
            "resize the images."
        )


def noise_level(sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
    """`timestep` of shape (), (1,) or (B,) as float32 of shape (B,) on the device of `sample`.

    Raises:
        ValueError: if it has another shape.
    """
    level = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
    if level.ndim > 1 or (level.ndim == 1 and level.shape[0] not in (1, sample.shape[0])):
        raise ValueError(
            f"`timestep` has shape {tuple(level.shape)}; allowed are () and ({sample.shape[0]},), the batch size."
        )
    return level.expand(sample.shape[0])


def sigma_of_label(label: torch.Tensor, sigma_min: float, sigma_max: float, num_train_timesteps: int) -> torch.Tensor:
    """sigma = sigma_max (sigma_min / sigma_max)^(label / (N - 1)): label 0 is the highest noise.

    Args:
        label: labels of any shape; a fraction is cut off.
        sigma_min: noise level of the last label.
        sigma_max: noise level of label 0.
        num_train_timesteps: number N of labels.

    Returns:
        float32 noise levels of the shape of `label`.
    """
    log_max, log_min = math.log(sigma_max), math.log(sigma_min)
    # Labels index a geometric grid; its closed form needs no table.
    return torch.exp(log_max + (log_min - log_max) / max(num_train_timesteps - 1, 1) * label.float().trunc())
