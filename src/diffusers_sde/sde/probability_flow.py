r"""The probability-flow ODE dx/dt = f x - g^2 score / 2: deterministic sampling and encoding.

Reference: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and App. D.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .base import SDE
from .conversions import score_to_epsilon
from .divergence import ScoreFunction
from .multistep import adams
from .ode import ErrorTracker, dormand_prince
from .precision import double_device, in_double
from .solution_check import finer, to_check

DEFAULT_TOLERANCES = {"dopri5": (1e-5, 1e-5), "adams": (5e-4, 0.0)}
DATA_STD = 0.5  # of the data in general, for "adams"; what it is exactly makes no difference

_STEP_RATIO = 2.0  # of sigma / alpha over a step of "dopri5"


@dataclass
class FlowResult:
    """End of the probability flow, one entry per row.

    Args:
        x: state at `t_end`, or where a row stopped; shape of the given one.
        nfe: evaluations of the score, those of a check included; int64 of shape (B,).
        error: estimate of the error of `x`, root mean square over the dimensions, in units of the state; (B,). Where
            the row was checked, its difference from a coarser solution.
        success: whether the row reached `t_end` within `max_nfe`, in steps within the tolerance; bool of shape (B,).
    """

    x: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    success: torch.Tensor


def probability_flow(
    sde: SDE,
    score_fn: ScoreFunction,
    x: torch.Tensor,
    t_start: float = 1.0,
    t_end: float = 1e-3,
    *,
    solver: str = "dopri5",
    rtol: float | None = None,
    atol: float | None = None,
    max_nfe: int = 10_000,
    check: bool | None = None,
) -> FlowResult:
    """Follow the probability flow of every row from `t_start` to `t_end`, in either direction.

    Where the given `x` requires a gradient and gradients are enabled, the result's `x` has that of the computed
    numbers, with the steps fixed, with respect to the given one and to parameters of the score. Otherwise it is
    detached.

    Args:
        sde: the forward process.
        score_fn: `(x, t) -> score`, row by row, with x of shape (n, ...) and t of shape (n,).
        x: states at `t_start`, shape (B, ...); the arithmetic is in its dtype.
        t_start: time of the start, in [0, 1].
        t_end: time of the end, in [0, 1]; the score is not evaluated beyond the two.
        solver: "dopri5" (Runge-Kutta 5(4)) or "adams" (multistep, few evaluations); both have a step size per row.
        rtol: relative tolerance of a step; by default 1e-5 for "dopri5", 5e-4 for "adams".
        atol: absolute tolerance of a step in units of the state, for "adams" at the end; by default 1e-5 and 0.
        max_nfe: most evaluations per row and solution.
        check: whether to solve once more with tolerances 8 times smaller, to return that solution, and the difference
            as its `error`; by default for rows whose path is not to be trusted, see `solution_check`.

    Raises:
        ValueError: if an argument is not allowed.
    """
    sde.check()
    check_times(t_start, t_end)
    rtol, atol = tolerances(solver, rtol, atol, DEFAULT_TOLERANCES)
    solve = _adams if solver == "adams" else _runge_kutta
    result, state_error = solve(sde, score_fn, x, t_start, t_end, rtol, atol, max_nfe)
    again = to_check(check, state_error, result.success)
    if again.any():  # one look of the host
        second, _ = solve(sde, score_fn, x[again], t_start, t_end, *finer(rtol, atol, x.dtype), max_nfe)
        difference = (second.x - result.x[again]).detach().flatten(1).square().mean(dim=1).sqrt()
        places, good = again.nonzero()[:, 0], second.success
        result.nfe = result.nfe.index_add(0, places, second.nfe)
        result.error = result.error.index_put((places,), torch.maximum(difference, second.error))
        result.success = result.success.index_put((places,), good)
        result.x = result.x.index_put((places[good],), second.x[good])
    result.nfe, result.success = result.nfe.to(x.device), result.success.to(x.device)
    return result


def flow_error(sde: SDE, dims: int, *, forward: bool) -> ErrorTracker:
    """Sum of the local errors of a path, root mean square over the first `dims` numbers, grown with the flow.

    Towards noise, distances across thin data grow like sigma; towards data, like the states, or like
    sqrt(alpha^2 DATA_STD^2 + sigma^2), whichever is more.
    """

    def track(total, local, y, y_new, t, t_new):
        size = in_double(local[:, :dims].square().mean(dim=1).sqrt())
        if forward:
            growth = sde.sigma(t_new) / sde.sigma(t)
        else:
            states = in_double(y_new.square().mean(dim=1) / y.square().mean(dim=1)).sqrt()
            growth = torch.fmax(states, _spread(sde, t_new) / _spread(sde, t))
        return torch.where(total > 0, total * growth, 0.0) + size

    return track


def longest_step(sde: SDE, *, forward: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Steps over which sigma / alpha changes by a factor of `_STEP_RATIO` at most.

    Near the data, times go by factors: a step over many of them has an error far from its estimate.
    """
    shift = -2 * math.log(_STEP_RATIO) * (1.0 if forward else -1.0)

    def longest(t: torch.Tensor) -> torch.Tensor:
        length = (sde.time_of_log_snr(sde.log_snr(t) + shift) - t).abs()
        return torch.where((t > 0) & (length > 0), length, math.inf)

    return longest


def _spread(sde: SDE, t: torch.Tensor) -> torch.Tensor:
    return ((sde.alpha(t) * DATA_STD).square() + sde.sigma(t).square()).sqrt()


def _runge_kutta(sde, score_fn, x, t_start, t_end, rtol, atol, max_nfe) -> tuple[FlowResult, torch.Tensor]:
    def rhs(y: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        state = y.reshape(-1, *x.shape[1:])
        return sde.probability_flow_drift(state, t, score_fn(state, t)).flatten(1)

    track = flow_error(sde, x[0].numel(), forward=t_end > t_start)
    longest = longest_step(sde, forward=t_end > t_start)
    options = {"rtol": rtol, "atol": atol, "max_nfe": max_nfe, "track": track, "longest": longest}
    end = dormand_prince(rhs, x.flatten(1), t_start, t_end, **options)
    relative = end.tracked / _spread(sde, torch.tensor(t_end, dtype=torch.float64))
    return FlowResult(end.y.reshape(x.shape), end.nfe, end.tracked.to(x), end.success), relative


def _adams(sde, score_fn, x, t_start, t_end, rtol, atol, max_nfe) -> tuple[FlowResult, torch.Tensor]:
    def epsilon_fn(y: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        state = y.reshape(-1, *x.shape[1:])
        return score_to_epsilon(sde, score_fn(state, t), t).flatten(1), None

    mean = torch.zeros(len(x), dtype=torch.float64, device=double_device(x.device))
    std = torch.full_like(mean, DATA_STD)
    end = adams(
        sde, epsilon_fn, x.flatten(1), t_start, t_end, mean=mean, std=std, rtol=rtol, atol=atol, max_nfe=max_nfe
    )
    return FlowResult(end.x.reshape(x.shape), end.nfe, end.error.to(x), end.success), end.state_error


def tolerances(
    solver: str, rtol: float | None, atol: float | None, defaults: dict[str, tuple[float, float]]
) -> tuple[float, float]:
    """The given tolerances, or the solver's own.

    Raises:
        ValueError: if there is no such solver, or a tolerance is not allowed.
    """
    if solver not in defaults:
        raise ValueError(f"solver is {solver!r}; allowed are {', '.join(map(repr, defaults))}.")
    rtol, atol = (default if value is None else value for default, value in zip(defaults[solver], (rtol, atol)))
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(f"rtol = {rtol} and atol = {atol}; they must not be negative, and not both 0.")
    return rtol, atol


def check_times(t_start: float, t_end: float) -> None:
    """Refuse times outside [0, 1], and a path of no length."""
    if not (0 <= t_start <= 1 and 0 <= t_end <= 1 and t_start != t_end):
        raise ValueError(f"t_start = {t_start} and t_end = {t_end}; they must be two different times in [0, 1].")
