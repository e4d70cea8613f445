r"""The probability-flow ODE dx/dt = f x - g^2 score / 2: deterministic sampling and encoding.

Reference: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and App. D.
"""

from dataclasses import dataclass

import torch

from .base import SDE
from .conversions import score_to_epsilon
from .divergence import ScoreFunction
from .multistep import adams
from .ode import dormand_prince

DEFAULT_TOLERANCES = {"dopri5": (1e-5, 1e-5), "adams": (5e-4, 0.0)}
DATA_STD = 0.5  # of the data in general, for "adams"; what it is exactly makes no difference


@dataclass
class FlowResult:
    """End of the probability flow, one entry per row.

    Args:
        x: state at `t_end`, or where a row stopped; shape of the given one.
        nfe: evaluations of the score, int64 of shape (B,).
        error: estimate of the error of `x`, root mean square over the dimensions, in units of the state; (B,).
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
) -> FlowResult:
    """Follow the probability flow of every row from `t_start` to `t_end`, in either direction.

    Args:
        sde: the forward process.
        score_fn: `(x, t) -> score`, row by row, with x of shape (n, ...) and t of shape (n,).
        x: states at `t_start`, shape (B, ...); the arithmetic is in its dtype.
        t_start: time of the start, in [0, 1].
        t_end: time of the end, in [0, 1]; the score is not evaluated beyond the two.
        solver: "dopri5" (Runge-Kutta 5(4)) or "adams" (multistep, few evaluations); both have a step size per row.
        rtol: relative tolerance of a step; by default 1e-5 for "dopri5", 5e-4 for "adams".
        atol: absolute tolerance of a step in units of the state, for "adams" at the end; by default 1e-5 and 0.
        max_nfe: most evaluations per row.

    Raises:
        ValueError: if an argument is not allowed.
    """
    check_times(t_start, t_end)
    rtol, atol = tolerances(solver, rtol, atol, DEFAULT_TOLERANCES)
    if solver == "adams":
        return _adams_flow(sde, score_fn, x, t_start, t_end, rtol, atol, max_nfe)

    def rhs(y: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        state = y.reshape(-1, *x.shape[1:])
        return sde.probability_flow_drift(state, t, score_fn(state, t)).flatten(1)

    end = dormand_prince(rhs, x.flatten(1), t_start, t_end, rtol=rtol, atol=atol, max_nfe=max_nfe)
    size = end.y.square().mean(dim=1).sqrt()
    return FlowResult(end.y.reshape(x.shape), end.nfe, end.error * (atol + rtol * size), end.success)


def _adams_flow(sde, score_fn, x, t_start, t_end, rtol, atol, max_nfe) -> FlowResult:
    def epsilon_fn(y: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        state = y.reshape(-1, *x.shape[1:])
        return score_to_epsilon(sde, score_fn(state, t), t).flatten(1), None

    mean = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    std = torch.full_like(mean, DATA_STD)
    end = adams(
        sde, epsilon_fn, x.flatten(1), t_start, t_end, mean=mean, std=std, rtol=rtol, atol=atol, max_nfe=max_nfe
    )
    return FlowResult(end.x.reshape(x.shape), end.nfe, end.error.to(x), end.success)


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
