"""What the pipelines of the probability flow share."""

import torch

from ..sde.arguments import real_number, whole_number
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
        sampling_eps = real_number("sampling_eps", sampling_eps)
        if not 0 <= sampling_eps < 1:
            raise ValueError(f"`sampling_eps` is {sampling_eps}; it is a time, at least 0 and below 1.")
        return sampling_eps

    def _read_images(self, image: ImageInput) -> tuple[torch.Tensor, int | None]:
        """Images in [0, 1] on the execution device, and the number of levels they were given in; checks sizes."""
        images, levels = read_images(image, self.unet.config.in_channels)
        self._image_size(*images.shape[2:])
        return images.to(self._execution_device), levels

    @staticmethod
    def _solver_options(
        solver: str, rtol: float | None, atol: float | None, max_nfe: int, check: bool = False
    ) -> dict:
        """Arguments of the solvers of `diffusers_sde.sde`, which check their ranges."""
        rtol, atol = (
            None if value is None else real_number(name, value) for name, value in (("rtol", rtol), ("atol", atol))
        )
        max_nfe = whole_number("max_nfe", max_nfe)
        return {"solver": solver, "rtol": rtol, "atol": atol, "max_nfe": max_nfe, "check": check}

    def _to_data_range(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * images - 1 if self._centered else images
