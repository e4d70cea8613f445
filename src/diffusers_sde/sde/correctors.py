r"""Correctors: a step of Langevin dynamics at fixed t, which leaves p_t invariant up to the step's bias.

Every update is a pure function `(x, t, s, score, noise) -> (x_next, x_next_mean)` with

    x_mean = x + epsilon score,      x_next = x_mean + sqrt(2 epsilon) noise

and a step size epsilon that the class defines. It is scaled by a^2 of the forward step from s < t to t (1 for VE,
1 - beta (t - s) for VP); `t` and `s` have shape () or (B,).

Reference: Song et al. 2021, arXiv:2011.13456, Sec. 4.2, App. G, Algorithms 4 and 5.
"""

import math
from abc import abstractmethod

import torch

from .base import SDE
from .broadcasting import expand_to
from .registry import Registry
from .update import Update

_REGISTRY = Registry("corrector")
register_corrector = _REGISTRY.register
corrector_names = _REGISTRY.names

NORMS = ("sample", "batch")


class Corrector(Update):
    """A corrector of one SDE.

    Args:
        sde: the forward process.
        snr: signal-to-noise ratio r of the step, positive.
        norm: "sample" for a step size per sample, "batch" for one from the batch means of the norms (official code).

    Raises:
        ValueError: if `snr` or `norm` is not allowed.
    """

    def __init__(self, sde: SDE, snr: float, norm: str = "sample"):
        super().__init__(sde)
        if not 0 < snr < math.inf:
            raise ValueError(f"`snr` is {snr}; it must be positive and finite (the paper uses 0.01 to 0.2).")
        if norm not in NORMS:
            raise ValueError(f"`corrector_norm` is {norm!r}; allowed are {', '.join(map(repr, NORMS))}.")
        self.snr = snr
        self.norm = norm

    @abstractmethod
    def step_size(self, t: torch.Tensor, score: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """epsilon without the factor a^2; shape () or (B,)."""

    def update(self, x, t, s, score, noise):
        a, _ = self.sde.discretize(t, s)
        epsilon = expand_to(self.step_size(t, score, noise), x) * expand_to(a.square(), x)
        x_mean = x + epsilon * score
        return x_mean + (2 * epsilon).sqrt() * noise, x_mean


@register_corrector("langevin")
class LangevinCorrector(Corrector):
    """epsilon = 2 a^2 (r |noise| / |score|)^2. Reference: Algorithms 4 and 5."""

    uses_discretization = True

    def step_size(self, t, score, noise):
        score_norm = torch.linalg.vector_norm(score.flatten(1), dim=1)
        noise_norm = torch.linalg.vector_norm(noise.flatten(1), dim=1)
        if self.norm == "batch":
            score_norm, noise_norm = score_norm.mean(), noise_norm.mean()
        return 2 * (self.snr * noise_norm / score_norm).square()


@register_corrector("ald")
class AnnealedLangevinCorrector(Corrector):
    """epsilon = 2 a^2 (r sigma(t))^2, annealed Langevin dynamics. Reference: Song & Ermon 2019, arXiv:1907.05600."""

    def step_size(self, t, score, noise):
        return 2 * (self.snr * self.sde.sigma(t)).square()


@register_corrector("none")
class NoneCorrector(Corrector):
    """x_next = x, for sampling by the predictor alone."""

    needs_score = False
    draws_noise = False

    def step_size(self, t, score, noise):
        return torch.zeros_like(t)

    def update(self, x, t, s, score, noise):
        return x, x


def make_corrector(name: str, sde: SDE, snr: float, norm: str = "sample") -> Corrector:
    """Build a corrector by name.

    Raises:
        ValueError: if the name is unknown (the message lists all), or an argument is not allowed.
    """
    return _REGISTRY[name](sde, snr, norm)
