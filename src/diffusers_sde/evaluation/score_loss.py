r"""Denoising score matching loss of a network on a data set: mean over time, and by noise level.

The times [t_min, 1] are cut into L equal parts, and every image is noised once at a time drawn from each,

    t_l = t_min + (1 - t_min) (l + u_l) / L,   u_l ~ U[0, 1),   loss_l = |sigma(t_l) s(x_{t_l}, t_l) + noise_l|^2 / D,

so that the mean over l is an unbiased estimate of the loss for uniform times, per dimension: 1 for a score of zero.
Times and noise of image i are a function of (seed, i).

Reference: Song et al. 2021, arXiv:2011.13456, Eq. (7), with lambda(t) = sigma(t)^2.
"""

import json
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..schedulers import from_diffusers_scheduler
from ..seeding import image_generators
from ..store import write_text
from ..training import denoising_score_matching_loss, to_data_range
from .rows import RowEvaluation, mean_and_error, plain


@dataclass
class ScoreLossEvaluation(RowEvaluation):
    """A data set's loss in the making; see `RowEvaluation` for the other arguments.

    Args:
        num_levels: L.

    Raises:
        ValueError: if it is below 1.
    """

    num_levels: int = 10

    def __post_init__(self):
        if self.num_levels < 1:
            raise ValueError(f"num_levels is {self.num_levels}; it must be at least 1.")
        self.scheduler = from_diffusers_scheduler(self.pipeline.scheduler)
        self.t_min = self.scheduler.first_time()
        super().__post_init__()

    def own_settings(self) -> dict:
        """What else fixes a row of this kind."""
        return {"num_levels": self.num_levels, "t_min": self.t_min}

    @torch.no_grad()
    def _measure(self, indices: list[int]) -> list[dict]:
        images = torch.stack([self.images[index] for index in indices]).to(self.pipeline.device)
        x_0 = to_data_range(images, not self.pipeline._centered)
        generators = image_generators(self.seed, indices)
        uniform = torch.stack([torch.rand(self.num_levels, generator=g, dtype=torch.float64) for g in generators])
        places = (torch.arange(self.num_levels) + uniform) / self.num_levels
        times = (self.t_min + (1 - self.t_min) * places).to(x_0)
        score_fn = self.scheduler.score_fn(self.pipeline.unet)

        def loss(t: torch.Tensor) -> torch.Tensor:
            noise = randn_tensor(x_0.shape, generators, x_0.device, x_0.dtype)
            return denoising_score_matching_loss(self.scheduler.sde, score_fn, x_0, t, noise, reduction="mean")

        losses = torch.stack([loss(t) for t in times.unbind(dim=1)], dim=1).tolist()
        return [{"index": i, "loss": [plain(value) for value in row]} for i, row in zip(indices, losses, strict=True)]

    def _write_result(self, rows: list[dict]) -> dict:
        losses = [row["loss"] for row in rows]
        means = [None if None in row else sum(row) / len(row) for row in losses]
        edges = torch.linspace(self.t_min, 1, self.num_levels + 1, dtype=torch.float64)
        sigmas = self.scheduler.sde.sigma(edges).tolist()
        levels = [
            {"t": edges[i : i + 2].tolist(), "sigma": sigmas[i : i + 2], **mean_and_error([row[i] for row in losses])}
            for i in range(self.num_levels)
        ]
        result = {
            "num_images": self.num_images,
            "loss": mean_and_error(means),
            "num_not_finite": means.count(None),
            "levels": levels,
            "settings": self._settings,
        }
        write_text(self.output, json.dumps(result, indent=1) + "\n")
        return result
