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
from .precision import in_double
from .probability_flow import check_times, flow_error, longest_step, tolerances
from .solution_check import finer, to_check

DEFAULT_TOLERANCES = {"dopri5": (1e-5, 1e-5), "adams": (1e-2, 5e-4)}


@dataclass
class LikelihoodResult:
    """Log-density by the probability flow, one entry per row.

    Args:
        log_likelihood: log p(x_0) in nats, mean over the probes; float64 of shape (B,), as the errors below on the
            host where the device has no float64.
        latents: state at t = 1, shape of the data.
        nfe: evaluations, each one forward pass and one vector-Jacobian product per probe, those of a check included;
            int64 of shape (B,).
        standard_error: of `log_likelihood` over the probes, in nats; 0 if exact, NaN for a single probe; (B,).
        error: estimate of the solver's error of `log_likelihood`, in nats; shape (B,). Where the row was checked, its
            difference from a coarser solution.
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
    check: bool | None = None,
) -> LikelihoodResult:
    r"""log p(x_0) of every row.

    Where `x_0` requires a gradient and gradients are enabled, `log_likelihood` and `latents` have that of the computed
    numbers, with the steps fixed, with respect to `x_0` and to parameters of the score. It keeps a graph of every
    evaluation, of the second order. Otherwise the results are detached.

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
        max_nfe: most evaluations per row and solution.
        check: whether to solve once more with tolerances 8 times smaller, to return that solution, and the difference
            as its `error`; by default for rows whose path is not to be trusted, see `solution_check`.

    Raises:
        ValueError: if an argument is not allowed.
    """
    sde.check()
    check_times(t_start, 1.0)
    rtol, atol = tolerances(solver, rtol, atol, DEFAULT_TOLERANCES)
    if not exact_trace:
        probes = _probes(probes, num_probes, x_0, generator)
    elif probes is not None:
        raise ValueError("`exact_trace` takes no probes; give one or the other.")
    solve = _adams if solver == "adams" else _runge_kutta

    def solution(rows: torch.Tensor | slice, rtol: float, atol: float) -> _Solution:
        part = None if probes is None else probes[:, rows]
        return solve(sde, score_fn, x_0[rows], t_start, part, rtol, atol, max_nfe)

    result = solution(slice(None), rtol, atol)
    again = to_check(check, result.state_error, result.success)
    if again.any():  # one look of the host
        result.replace(again, solution(again, *finer(rtol, atol, x_0.dtype)))
    count = result.values.shape[1]
    standard_error = torch.full_like(result.error, 0.0 if exact_trace else math.nan)
    if not exact_trace and count > 1:
        standard_error = result.values.detach().std(dim=1) / math.sqrt(count)
    nfe, success = result.nfe.to(x_0.device), result.success.to(x_0.device)
    return LikelihoodResult(result.values.mean(dim=1), result.latents, nfe, standard_error, result.error, success)


@dataclass
class _Solution:
    """Log-densities of shape (B, P), latents, evaluations, and errors: in nats, and of the path."""

    values: torch.Tensor
    latents: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    state_error: torch.Tensor
    success: torch.Tensor

    def replace(self, rows: torch.Tensor, finer: "_Solution") -> None:
        """Take a finer solution of some rows where it succeeded, its difference from this one as the error."""
        difference = (finer.values - self.values[rows]).detach().abs().mean(dim=1)
        places = rows.nonzero()[:, 0]
        self.nfe = self.nfe.index_add(0, places, finer.nfe)
        self.error = self.error.index_put((places,), torch.maximum(difference, finer.error))
        self.success = self.success.index_put((places,), finer.success)
        good = places[finer.success]
        self.values = self.values.index_put((good,), finer.values[finer.success])
        self.latents = self.latents.index_put((good,), finer.latents[finer.success])


def _probes(probes, num_probes: int, x_0: torch.Tensor, generator) -> torch.Tensor:
    if probes is None:
        if num_probes < 1:
            raise ValueError(f"`num_probes` is {num_probes}; it must be at least 1.")
        return draw_probes("rademacher", (num_probes, *x_0.shape), generator, x_0.device, x_0.dtype)
    if probes.shape[1:] != x_0.shape:
        raise ValueError(f"`probes` has shape {tuple(probes.shape)}; (num_probes, *{tuple(x_0.shape)}) is needed.")
    return probes.to(x_0)


def _runge_kutta(sde, score_fn, x_0, t_start, probes, rtol, atol, max_nfe) -> _Solution:
    """By `dormand_prince`, on state and integrals together."""
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
    options = {"rtol": rtol, "atol": atol, "max_nfe": max_nfe, "norm": norm}
    options |= {"track": flow_error(sde, dims, forward=True), "longest": longest_step(sde, forward=True)}
    end = dormand_prince(rhs, y, t_start, 1.0, **options)
    latents = end.y[:, :dims].reshape(x_0.shape)
    values = sde.prior_log_prob(in_double(latents))[:, None] + in_double(end.y[:, dims:])
    error = end.error * dims * max(atol, rtol)
    return _Solution(values, latents, end.nfe, error, end.tracked / sde.prior_std, end.success)


def _adams(sde, score_fn, x_0, t_start, probes, rtol, atol, max_nfe) -> _Solution:
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
    latents = end.x.reshape(x_0.shape)
    values = sde.prior_log_prob(in_double(latents))[:, None] + end.log_volume
    return _Solution(values, latents, end.nfe, end.density_error, end.state_error, end.success)
