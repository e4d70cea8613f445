r"""One prediction, three names.

For x_t = alpha x_0 + sigma epsilon, the conditional means given x_t are tied by

    score = -epsilon / sigma,      denoised = (x_t - sigma epsilon) / alpha = (x_t + sigma^2 score) / alpha.

All functions take and return tensors of the shape of the state; `t` has shape () or (B,).
"""

import torch

from .base import SDE
from .broadcasting import expand_to


def epsilon_to_score(sde: SDE, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """-epsilon / sigma(t)."""
    return -epsilon / expand_to(sde.sigma(t), epsilon)


def score_to_epsilon(sde: SDE, score: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """-sigma(t) score."""
    return -expand_to(sde.sigma(t), score) * score


def score_to_denoised(sde: SDE, score: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(x + sigma(t)^2 score) / alpha(t), Tweedie's formula: the mean of x_0 given x_t = x."""
    return (x + expand_to(sde.sigma(t).square(), x) * score) / expand_to(sde.alpha(t), x)


def denoised_to_score(sde: SDE, denoised: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(alpha(t) denoised - x) / sigma(t)^2."""
    return (expand_to(sde.alpha(t), x) * denoised - x) / expand_to(sde.sigma(t).square(), x)


def epsilon_to_denoised(sde: SDE, epsilon: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(x - sigma(t) epsilon) / alpha(t)."""
    return (x - expand_to(sde.sigma(t), x) * epsilon) / expand_to(sde.alpha(t), x)


def denoised_to_epsilon(sde: SDE, denoised: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(x - alpha(t) denoised) / sigma(t)."""
    return (x - expand_to(sde.alpha(t), x) * denoised) / expand_to(sde.sigma(t), x)
