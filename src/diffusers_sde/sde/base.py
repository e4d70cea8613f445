r"""The forward process and what follows from it.

A forward process on t in [0, 1], noise growing with t, is

    dx = f(t) x dt + g(t) dw,      p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)

and fixed by alpha and sigma alone:

    f = d log alpha / dt,          g^2 = d sigma^2 / dt - 2 f sigma^2.

Times have shape () or (B,), states (B, ...) with rank at least 2.

Reference: Song et al. 2021, arXiv:2011.13456, Sec. 3 and App. B; Karras et al. 2022, arXiv:2206.00364, App. B.
"""

import math
from abc import ABC, abstractmethod

import torch

from .broadcasting import expand_to
from .premises import check_sde

_FINAL = ("drift", "perturb", "prior_sample", "prior_log_prob", "reverse_drift", "probability_flow_drift", "check")


class SDE(ABC):
    """Base class. A new SDE needs `alpha`, `sigma` and `prior_std`; closed forms of the rest are optional.

    The linear form above is a premise of every solver: methods that spell it out (`perturb`, `drift`, `prior_sample`,
    ...) cannot be overridden, and `check` refuses coefficients that the solvers cannot take.
    """

    prior_std: float
    """Standard deviation of the terminal Gaussian p_1, from which sampling starts."""

    has_ancestral_sampling: bool = False
    """Whether `ancestral_std` is defined."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        changed = [name for name in _FINAL if getattr(cls, name) is not getattr(SDE, name)]
        if changed:
            raise ValueError(
                f"{cls.__name__} overrides {', '.join(changed)}; solvers rely on x_t = alpha(t) x_0 + sigma(t) noise "
                "and the prior N(0, prior_std^2). Define `alpha`, `sigma` and `prior_std`; for a process with a mean, "
                "shift the data instead."
            )

    def check(self) -> None:
        """Refuse an SDE that the solvers cannot take; the result is kept, so that later calls cost nothing.

        Raises:
            ValueError: naming the condition and the remedy, unless alpha(0) = 1, alpha stays above 1e-8, sigma / alpha
                increases, f and g are finite, p_1 has about the standard deviation `prior_std`, and overridden closed
                forms agree with those derived from alpha and sigma.
        """
        if not self.__dict__.get("_checked", False):
            check_sde(self, SDE)
            self._checked = True

    @abstractmethod
    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Mean coefficient of p(x_t | x_0); shape of `t`, positive."""

    @abstractmethod
    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Standard deviation of p(x_t | x_0); shape of `t`, increasing."""

    def drift_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        """f(t) = d log alpha / dt, by automatic differentiation; shape of `t`."""
        return _derivative(lambda t: self.alpha(t).log(), t)

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t) = sqrt(d sigma^2 / dt - 2 f sigma^2), by automatic differentiation; shape of `t`."""
        growth = _derivative(lambda t: self.sigma(t).square(), t)
        return (growth - 2 * self.drift_coefficient(t) * self.sigma(t).square()).clamp(min=0).sqrt()

    def drift(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """f(t) x; shape of `x`."""
        return expand_to(self.drift_coefficient(t), x) * x

    def log_snr(self, t: torch.Tensor) -> torch.Tensor:
        """log alpha^2 / sigma^2, decreasing in `t`; shape of `t`."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time_of_log_snr(self, value: torch.Tensor) -> torch.Tensor:
        """Inverse of `log_snr`, by bisection in float64 on [0, 1]; shape of `value`.

        Values beyond those at t = 0 and t = 1 give 0 and 1.
        """
        target = value.double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            too_early = self.log_snr(middle) > target
            low, high = torch.where(too_early, middle, low), torch.where(too_early, high, middle)
        return ((low + high) / 2).to(value.dtype)

    def perturb(self, x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise; shape of `x_0`."""
        return expand_to(self.alpha(t), x_0) * x_0 + expand_to(self.sigma(t), x_0) * noise

    def prior_sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Draw from p_1 = N(0, prior_std^2 I)."""
        return self.prior_std * torch.randn(shape, generator=generator, device=device, dtype=dtype)

    def prior_log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p_1(z) in nats, summed over all but the first dimension; shape (B,)."""
        dims = z[0].numel()
        constant = -0.5 * dims * math.log(2 * math.pi * self.prior_std**2)
        return constant - z.flatten(1).square().sum(dim=1) / (2 * self.prior_std**2)

    def reverse_drift(self, x: torch.Tensor, t: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """f(t) x - g(t)^2 score, the drift of the reverse-time SDE. Reference: Eq. (6)."""
        return self.drift(x, t) - expand_to(self.diffusion(t).square(), x) * score

    def probability_flow_drift(self, x: torch.Tensor, t: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """f(t) x - g(t)^2 score / 2, the drift of the probability-flow ODE. Reference: Eq. (13)."""
        return self.drift(x, t) - expand_to(self.diffusion(t).square(), x) * (0.5 * score)

    def discretize(self, t: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients (a, b) of one forward step x_t ~ N(a x_s, b^2 I), s < t.

        Here by Euler-Maruyama: a = 1 + f(t) (t - s), b = g(t) sqrt(t - s). Subclasses give the scheme of the paper.

        Args:
            t: end of the forward step, shape () or (B,).
            s: its beginning, same shape.

        Returns:
            a and b, shape of `t`.
        """
        return 1 + self.drift_coefficient(t) * (t - s), self.diffusion(t) * (t - s).sqrt()

    def discretization_times(self, u: torch.Tensor, num_steps: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Times (t, s) at which `discretize` is the N-step scheme of the paper.

        Args:
            u: place on the sampling grid, 0 for the last step and 1 for the first; shape () or (B,).
            num_steps: number N of sampling steps.

        Returns:
            t and s, or `None` where the scheme takes the network's own time t and s = t - 1/N.
        """
        return None

    def ancestral_std(self, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the ancestral step from t to s; only if `has_ancestral_sampling`."""
        raise TypeError(f"ancestral sampling is not defined for {type(self).__name__}.")


def _derivative(function, t: torch.Tensor) -> torch.Tensor:
    """d function / dt, elementwise; also inside `torch.no_grad` and `torch.inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        value = function(t).sum()
        if not value.requires_grad:  # a function that does not depend on t
            return torch.zeros_like(t)
        (gradient,) = torch.autograd.grad(value, t)
    return gradient
