"""Variance-exploding SDE, the continuous limit of SMLD (NCSN)."""

import math

import torch

from .base import SDE


class VESDE(SDE):
    r"""alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t.

    Args:
        sigma_min: noise at t = 0, in units of the data, positive.
        sigma_max: noise at t = 1, larger than `sigma_min`; about the largest distance between two data points.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Reference: Song et al. 2021, arXiv:2011.13456, Eq. (9) and App. C.
    """

    has_ancestral_sampling = True

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"sigma_min = {sigma_min} and sigma_max = {sigma_max}; they must be finite with "
                "0 < sigma_min < sigma_max."
            )
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.prior_std = sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(t)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def time_of_log_snr(self, value: torch.Tensor) -> torch.Tensor:
        return ((-0.5 * value - math.log(self.sigma_min)) / self._log_ratio).clamp(0, 1)

    def discretize(self, t: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a = 1, b^2 = sigma(t)^2 - sigma(s)^2, the exact step. s = -inf stands for the data without noise."""
        return self.alpha(t), (self.sigma(t).square() - self.sigma(s).square()).sqrt()

    def discretization_times(self, u: torch.Tensor, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Neighbours on the uniform grid of N times from 0 to 1; below the last of them there is no noise."""
        spacing = 1 / (num_steps - 1) if num_steps > 1 else math.inf
        s = u - spacing
        return u, torch.where(s < -0.5 * spacing, -math.inf, s)

    def ancestral_std(self, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Exact posterior: sigma(s) b / sigma(t). Reference: App. F, Eq. (47)."""
        return self.sigma(s) * self.discretize(t, s)[1] / self.sigma(t)
