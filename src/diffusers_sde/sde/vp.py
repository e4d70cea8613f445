"""Variance-preserving SDE, the continuous limit of DDPM, and its sub-VP variant."""

import math

import torch

from .base import SDE


class _LinearBetaSDE(SDE):
    r"""What VP and sub-VP share: alpha(t) = exp(-1/2 int_0^t beta), beta(t) = beta_min + t (beta_max - beta_min).

    Args:
        beta_min: beta(0), non-negative.
        beta_max: beta(1), at least `beta_min` and positive.

    Raises:
        ValueError: unless 0 <= beta_min <= beta_max and beta_max > 0.
    """

    prior_std = 1.0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not (0 <= beta_min <= beta_max < math.inf and beta_max > 0):
            raise ValueError(
                f"beta_min = {beta_min} and beta_max = {beta_max}; they must be finite with "
                "0 <= beta_min <= beta_max and beta_max > 0."
            )
        self.beta_min = beta_min
        self.beta_max = beta_max

    def beta(self, t: torch.Tensor) -> torch.Tensor:
        """beta(t); shape of `t`."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral_of_beta(self, t: torch.Tensor) -> torch.Tensor:
        """int_0^t beta; shape of `t`."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.exp(-0.5 * self.integral_of_beta(t))

    def drift_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        return -0.5 * self.beta(t)

    def time_of_integral_of_beta(self, integral: torch.Tensor) -> torch.Tensor:
        """Inverse of `integral_of_beta`, in the form that does not cancel; 0 below 0, and not bounded above."""
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * integral).sqrt() + self.beta_min
        return torch.where(integral > 0, 2 * integral / root, 0.0)


class VPSDE(_LinearBetaSDE):
    r"""alpha(t) = exp(-1/2 int_0^t beta), sigma(t)^2 = 1 - alpha(t)^2.

    Args and errors as for all linear schedules: 0 <= `beta_min` <= `beta_max`, `beta_max` > 0.

    Reference: Song et al. 2021, arXiv:2011.13456, Eq. (11) and App. C.
    """

    has_ancestral_sampling = True

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return torch.expm1(-self.integral_of_beta(t)).neg().sqrt()

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        return self.beta(t).sqrt()

    def time_of_log_snr(self, value: torch.Tensor) -> torch.Tensor:
        # sigma^2 / alpha^2 = exp(int beta) - 1
        return self.time_of_integral_of_beta(torch.nn.functional.softplus(-value)).clamp(max=1)

    def discretize(self, t: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The DDPM chain: b^2 = beta(t) (t - s), a^2 = 1 - b^2. Reference: App. B, Eq. (10).

        Raises:
            ValueError: if a step is so long that b^2 >= 1.
        """
        variance = self.beta(t) * (t - s)
        if variance.device.type == "cpu" and bool((variance >= 1).any()):
            raise ValueError(
                f"a step of {float((t - s).max()):.3g} at beta = {float(self.beta(t).max()):.3g} has variance "
                f"{float(variance.max()):.3g} >= 1, which the DDPM discretisation cannot take. Use more than "
                f"{math.floor(self.beta_max)} steps, or the `euler_maruyama` predictor."
            )
        return (1 - variance).sqrt(), variance.sqrt()

    def discretization_times(self, u: torch.Tensor, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """beta on the uniform grid of N times from 0 to 1, steps of 1/N."""
        return u, u - 1 / num_steps

    def ancestral_std(self, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """The larger of the two choices of DDPM: b. Reference: App. B; Ho et al. 2020, arXiv:2006.11239, Sec. 3.2."""
        return self.discretize(t, s)[1]


class SubVPSDE(_LinearBetaSDE):
    r"""alpha(t) = exp(-1/2 int_0^t beta), sigma(t) = 1 - alpha(t)^2; less noise than VP at every time.

    Args and errors as for all linear schedules: 0 <= `beta_min` <= `beta_max`, `beta_max` > 0.

    Reference: Song et al. 2021, arXiv:2011.13456, Eq. (12) and App. C.
    """

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return torch.expm1(-self.integral_of_beta(t)).neg()

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        discount = torch.expm1(-2 * self.integral_of_beta(t)).neg()
        return (self.beta(t) * discount).sqrt()

    def time_of_log_snr(self, value: torch.Tensor) -> torch.Tensor:
        # sigma / alpha = 2 sinh(int beta / 2)
        return self.time_of_integral_of_beta(2 * torch.asinh(0.5 * torch.exp(-0.5 * value))).clamp(max=1)
