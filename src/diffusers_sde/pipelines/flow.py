"""What the pipelines of the probability flow share."""

import torch

from .base import AnyScheduler, ScoreNetwork, ScoreSdePipelineBase
from .image_input import ImageInput, read_images


class FlowPipelineBase(ScoreSdePipelineBase):
    """Base of the pipelines that integrate the probability flow.

    Args:
        unet: network with the calling convention of `UNet2DModel`.
        scheduler: one of this package's; one of diffusers' is turned into ours, here and by assignment.
    """

    def __init__(self, unet: ScoreNetwork, scheduler: AnyScheduler):
        super().__init__(unet, scheduler)

    def _score_function(self):
        return self.scheduler.score_fn(self.unet)

    def _first_time(self, sampling_eps: float | None, default: float) -> float:
        """Time at which the data lie, never below the first that a label stands for."""
        if sampling_eps is None:
            return max(default, self.scheduler.first_time())
        if not 0 <= sampling_eps < 1:
            raise ValueError(f"`sampling_eps` is {sampling_eps}; it is a time, at least 0 and below 1.")
        return sampling_eps

    def _read_images(self, image: ImageInput) -> tuple[torch.Tensor, bool]:
        """Images in [0, 1] on the execution device, and whether they were given in 8 bits; checks sizes."""
        images, eight_bit = read_images(image, self.unet.config.in_channels)
        self._image_size(*images.shape[2:])
        return images.to(self._execution_device), eight_bit

    def _to_data_range(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * images - 1 if self._centered else images
