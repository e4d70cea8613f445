"""What predictors and correctors have in common: a pure update of the state, and the times it is to be given."""

from abc import ABC, abstractmethod

import torch

from .base import SDE


class Update(ABC):
    """A step of a sampler for one SDE.

    Args:
        sde: the forward process.
    """

    uses_discretization: bool = False
    """Whether the step is built on `SDE.discretize`, and so wants the times of the paper's scheme."""

    needs_score: bool = True
    """Whether the network has to be evaluated."""

    draws_noise: bool = True
    """Whether `update` makes use of its noise."""

    def __init__(self, sde: SDE):
        sde.check()
        self.sde = sde

    def times(self, u: torch.Tensor, t: torch.Tensor, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Times (t, s) of the step in the official N-step sampler.

        Args:
            u: place on the sampling grid, from 1 (first step) to 0 (last); shape () or (B,).
            t: time on which the network is conditioned there, same shape.
            num_steps: number N of steps.
        """
        times = self.sde.discretization_times(u, num_steps) if self.uses_discretization else None
        return (t, t - 1 / num_steps) if times is None else times

    @abstractmethod
    def update(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        s: torch.Tensor,
        score: torch.Tensor | None,
        noise: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step; returns the next state and its mean, the step without noise.

        Args:
            x: state, shape (B, ...), rank at least 2.
            t: current time, shape () or (B,).
            s: next time, s < t, same shape.
            score: score of p_t at `x`, shape of `x`; `None` will do if not `needs_score`.
            noise: standard normal, shape of `x`.
        """
