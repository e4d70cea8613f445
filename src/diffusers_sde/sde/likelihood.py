r"""Exact log-density by the instantaneous change of variables along the probability flow.

    log p(x_0) = log p_1(x_1) + int_{t_start}^1 div(f x - g^2 score / 2) dt

Reference: Song et al. 2021, arXiv:2011.13456, Eq. (39) and (40), App. D.2; Chen et al. 2018, arXiv:1806.07366.
"""

import math
from dataclasses import dataclass

import torch

from .base import SDE
from .broadcasting import expand_to
from .divergence import ScoreFunction, draw_probes, score_and_divergence
from .multistep import adams
from .ode import dormand_prince, root_mean_square
from .probability_flow import check_times, tolerances

DEFAULT_TOLERANCES = {"dopri5": (1e-5, 1e-5), "adams": (1e-2, 5e-4)}


@dataclass
class LikelihoodResult:
    """Log-density by the probability flow, one entry per row.

    Args:
        log_likelihood: log p(x_0) in nats, mean over the probes; float64 of shape (B,).
        latents: state at t = 1, shape of the data.
        nfe: evaluations, each one forward pass and one vector-Jacobian product per probe; int64 of shape (B,).
        standard_error: of `log_likelihood` over the probes, in nats; 0 if exact, NaN for a single probe; (B,).
        error: estimate of the solver's error of `log_likelihood`, in nats; shape (B,).
        success: whether the row reached t = 1 within `max_nfe`, in steps within the tolerance; bool of shape (B,).
    """

    log_likelihood: torch.Tensor
    latents: torch.Tensor
    nfe: torch.Tensor
    standard_error: torch.Tensor
    error: torch.Tensor
    success: torch.Tensor


def log_likelihood(
    sde: SDE,
    score_fn: ScoreFunction,
    x_0: torch.Tensor,
    *,
    t_start: float = 1e-5,
    probes: torch.Tensor | None = None,
    num_probes: int = 1,
    exact_trace: bool = False,
    generator: torch.Generator | None = None,
    solver: str = "dopri5",
    rtol: float | None = None,
    atol: float | None = None,
    max_nfe: int = 10_000,
) -> LikelihoodResult:
    r"""log p(x_0) of every row.

    Args:
        sde: the forward process.
        score_fn: `(x, t) -> score`, row by row, differentiable with respect to x.
        x_0: data, shape (B, ...); the arithmetic of the state is in its dtype.
        t_start: time at which the data are taken to lie, in [0, 1).
        probes: vectors of zero mean and unit covariance for the divergence, shape (num_probes, B, ...).
        num_probes: number of Rademacher probes that are drawn if none are given.
        exact_trace: whether to take the divergence exactly, by one product per dimension.
        generator: source of the probes.
        solver: "dopri5" (Runge-Kutta 5(4)) or "adams" (multistep, few evaluations); both have a step size per row.
        rtol: tolerance of a step relative to the state; by default 1e-5 for "dopri5", 1e-2 for "adams".
        atol: tolerance of a step in nats per dimension, for "dopri5" in units of the state, too; by default 1e-5 for
            "dopri5", 5e-4 for "adams".
        max_nfe: most evaluations per row.

    Raises:
        ValueError: if an argument is not allowed.
    """
    check_times(t_start, 1.0)
    rtol, atol = tolerances(solver, rtol, atol, DEFAULT_TOLERANCES)
    if not exact_trace:
        probes = _probes(probes, num_probes, x_0, generator)
    elif probes is not None:
        raise ValueError("`exact_trace` takes no probes; give one or the other.")
    solve = _adams if solver == "adams" else _runge_kutta
    latents, integrals, nfe, error, success = solve(sde, score_fn, x_0, t_start, probes, rtol, atol, max_nfe)
    values = sde.prior_log_prob(latents.double())[:, None] + integrals
    count = values.shape[1]
    if exact_trace:
        standard_error = torch.zeros_like(error)
    else:
        standard_error = values.std(dim=1) / math.sqrt(count) if count > 1 else torch.full_like(error, math.nan)
    return LikelihoodResult(values.mean(dim=1), latents, nfe, standard_error, error, success)


def _probes(probes, num_probes: int, x_0: torch.Tensor, generator) -> torch.Tensor:
    if probes is None:
        if num_probes < 1:
            raise ValueError(f"`num_probes` is {num_probes}; it must be at least 1.")
        return draw_probes("rademacher", (num_probes, *x_0.shape), generator, x_0.device, x_0.dtype)
    if probes.shape[1:] != x_0.shape:
        raise ValueError(f"`probes` has shape {tuple(probes.shape)}; (num_probes, *{tuple(x_0.shape)}) is needed.")
    return probes.to(x_0)


def _runge_kutta(sde, score_fn, x_0, t_start, probes, rtol, atol, max_nfe):
    """Latents, integrals (B, P), evaluations, errors, success by `dormand_prince` on state and integrals together."""
    dims = x_0[0].numel()
    count = 1 if probes is None else len(probes)

    def rhs(y: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        x = y[:, :dims].reshape(-1, *x_0.shape[1:])
        score, divergence = score_and_divergence(score_fn, x, t, None if probes is None else probes[:, rows])
        half_variance = 0.5 * sde.diffusion(t).square()
        drift = sde.drift(x, t) - expand_to(half_variance, x) * score
        change = dims * sde.drift_coefficient(t) - half_variance * divergence
        return torch.cat([drift.flatten(1), change.T.to(y)], dim=1)

    def norm(error: torch.Tensor, tolerance: torch.Tensor) -> torch.Tensor:
        # The state by its root mean square; the log-density per dimension, by the absolute tolerance.
        state = root_mean_square(error[:, :dims], tolerance[:, :dims])
        density = error[:, dims:].abs().amax(dim=1) / (dims * max(atol, rtol))
        return torch.maximum(state, density)

    y = torch.cat([x_0.flatten(1), x_0.new_zeros(len(x_0), count)], dim=1)
    end = dormand_prince(rhs, y, t_start, 1.0, rtol=rtol, atol=atol, max_nfe=max_nfe, norm=norm)
    latents = end.y[:, :dims].reshape(x_0.shape)
    error = end.error.double() * dims * max(atol, rtol)
    return latents, end.y[:, dims:].double(), end.nfe, error, end.success


def _adams(sde, score_fn, x_0, t_start, probes, rtol, atol, max_nfe):
    """The same by `adams`."""
    flat = x_0.flatten(1)

    def epsilon_fn(y: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = y.reshape(-1, *x_0.shape[1:])
        score, divergence = score_and_divergence(score_fn, x, t, None if probes is None else probes[:, rows])
        sigma = sde.sigma(t)
        return -expand_to(sigma, y) * score.flatten(1), -sigma * divergence

    end = adams(
        sde,
        epsilon_fn,
        flat,
        t_start,
        1.0,
        mean=flat.mean(dim=1),
        std=flat.var(dim=1, correction=0).clamp(min=1e-4).sqrt(),
        rtol=rtol,
        atol=0.0,
        density_tolerance=atol,
        max_nfe=max_nfe,
    )
    return end.x.reshape(x_0.shape), end.log_volume, end.nfe, end.density_error, end.success
