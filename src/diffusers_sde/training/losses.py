r"""Losses of score networks: one number per sample, mean over the batch left to the caller.

A network s(x, t) learns the score of p(x_t) from pairs

    x_t = alpha(t) x_0 + sigma(t) noise,      noise ~ N(0, I),      t ~ U(t_min, 1)

by denoising score matching with the weight lambda(t) = sigma(t)^2,

    loss = lambda(t) |s(x_t, t) - grad log p(x_t | x_0)|^2 = |sigma(t) s(x_t, t) + noise|^2.

Nothing is drawn here: `t` and `noise` are arguments.

Reference: Song et al. 2021, arXiv:2011.13456, Eq. (7) and App. C.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..sde import SDE

ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

REDUCTIONS = ("mean", "sum")


def denoising_score_matching_loss(
    sde: "SDE",
    score_fn: ScoreFunction,
    x_0: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""|sigma(t) s(x_t, t) + noise|^2 per sample, in float32.

    Args:
        sde: the forward process.
        score_fn: `(x, t) -> score`, shapes (B, ...) and (B,) -> (B, ...).
        x_0: clean data in the network's data range, shape (B, ...).
        t: times in (0, 1], shape (B,).
        noise: standard normal, shape of `x_0`.
        reduction: over the dimensions of one sample, "mean", or "sum" for half the sum.

    Returns:
        Non-negative losses, shape (B,). A score of zero has the expected loss 1 ("mean") or dims / 2 ("sum").

    Raises:
        ValueError: if `reduction` is not one of the two; if `t` is not one time per sample.

    Reference: Song et al. 2021, arXiv:2011.13456, Eq. (7). The official code has "mean" as `reduce_mean=True`
    (VP, sub-VP) and "sum" as `reduce_mean=False` (VE).
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; allowed are {', '.join(map(repr, REDUCTIONS))}.")
    if t.shape != x_0.shape[:1]:
        raise ValueError(
            f"t has shape {tuple(t.shape)}, x_0 {tuple(x_0.shape)}; give one time per sample, shape ({x_0.shape[0]},)."
        )
    x_0, t, noise = x_0.float(), t.float(), noise.float()
    x_t = sde.perturb(x_0, noise, t)
    score = score_fn(x_t, t).float()
    residual = sde.sigma(t).unsqueeze(1) * score.flatten(1) + noise.flatten(1)
    squares = residual.square()
    return squares.mean(dim=1) if reduction == "mean" else 0.5 * squares.sum(dim=1)
