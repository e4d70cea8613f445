r"""Losses of score networks: one number per sample, mean over the batch left to the caller.

A network s(x, t) learns the score of p(x_t) from pairs

    x_t = alpha(t) x_0 + sigma(t) noise,      noise ~ N(0, I),      t ~ U(t_min, 1)

by denoising score matching with the weight lambda(t) = sigma(t)^2,

    loss = lambda(t) |s(x_t, t) - grad log p(x_t | x_0)|^2 = |sigma(t) s(x_t, t) + noise|^2,

or without the score of p(x_t | x_0), by sliced score matching with probes v of zero mean and unit covariance,

    loss = lambda(t) (|s|^2 + 2 v^T (ds/dx) v),

which has the same expectation up to the dimension. Nothing is drawn here: `t`, `noise` and the probes are arguments.
The losses of SMLD and DDPM are the first one at the times of the scheduler's `label_times`.

Reference: Song et al. 2021, arXiv:2011.13456, Eq. (1), (3), (7) and App. C; Song et al. 2019, arXiv:1905.07088
(sliced score matching, Eq. (8) with the first term exact).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""|sigma(t) s(x_t, t) + noise|^2 per sample, in float32.

    Args:
        sde: the forward process.
        score_fn: `(x, t) -> score`, shapes (B, ...) and (B,) -> (B, ...).
        x_0: clean data in the network's data range, shape (B, ...).
        t: times in (0, 1], shape (B,).
        noise: standard normal, shape of `x_0`.
        reduction: over the dimensions of one sample, "mean", or "sum" for half the sum.
        weight: factor of each loss, shape (B,): lambda(t) / sigma(t)^2; see `TrainingTimes`. 1 if `None`.

    Returns:
        Non-negative losses, shape (B,). A score of zero has the expected loss 1 ("mean") or dims / 2 ("sum"), times
        the weight.

    Raises:
        ValueError: if `reduction` is not one of the two; if `t` is not one time per sample.

    Reference: Song et al. 2021, arXiv:2011.13456, Eq. (7). The official code has "mean" as `reduce_mean=True`
    (VP, sub-VP) and "sum" as `reduce_mean=False` (VE).
    """
    _check(reduction, x_0, t)
    x_0, t, noise = x_0.float(), t.float(), noise.float()
    score = score_fn(sde.perturb(x_0, noise, t), t).float()
    residual = sde.sigma(t).unsqueeze(1) * score.flatten(1) + noise.flatten(1)
    squares = residual.square()
    return _weighted(squares.mean(dim=1) if reduction == "mean" else 0.5 * squares.sum(dim=1), weight)


def sliced_score_matching_loss(
    sde: "SDE",
    score_fn: ScoreFunction,
    x_0: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    probes: torch.Tensor,
    *,
    reduction: str = "mean",
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""sigma(t)^2 (|s(x_t, t)|^2 + 2 v^T (ds/dx) v) per sample, in float32.

    Differentiating it goes through the network twice.

    Args:
        sde: as for `denoising_score_matching_loss`, likewise the rest.
        score_fn: `(x, t) -> score`, twice differentiable.
        x_0: clean data, shape (B, ...).
        t: times in (0, 1], shape (B,).
        noise: standard normal, shape of `x_0`.
        probes: v of zero mean and unit covariance, such as signs, shape of `x_0`.
        reduction: "mean" over the dimensions, or "sum" for half the sum.
        weight: factor of each loss, shape (B,).

    Returns:
        Losses of any sign, shape (B,). Their expectation is that of the denoising loss less 1 ("mean") or dims / 2
        ("sum"), times the weight.

    Raises:
        ValueError: as `denoising_score_matching_loss`.

    Reference: Song et al. 2019, arXiv:1905.07088, Eq. (8); Song et al. 2021, arXiv:2011.13456, Sec. 3.3.
    """
    _check(reduction, x_0, t)
    x_0, t, noise, probes = x_0.float(), t.float(), noise.float(), probes.float()
    # The fused kernels of attention have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x_t = sde.perturb(x_0, noise, t).detach().requires_grad_()
        score = score_fn(x_t, t).float()
        (product,) = torch.autograd.grad(score, x_t, probes, create_graph=True)
    terms = (score.square() + 2 * probes * product).flatten(1)
    loss = terms.mean(dim=1) if reduction == "mean" else 0.5 * terms.sum(dim=1)
    return _weighted(sde.sigma(t).square() * loss, weight)


def _check(reduction: str, x_0: torch.Tensor, t: torch.Tensor) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; allowed are {', '.join(map(repr, REDUCTIONS))}.")
    if t.shape != x_0.shape[:1]:
        raise ValueError(
            f"t has shape {tuple(t.shape)}, x_0 {tuple(x_0.shape)}; give one time per sample, shape ({x_0.shape[0]},)."
        )


def _weighted(losses: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    return losses if weight is None else weight * losses
