r"""Adaptive Runge-Kutta integration of a batch of independent ODEs, dy/dt = rhs(y, t).

Each row of the batch has its own time, step size, error control and acceptance, and leaves the batch when it is
finished: its result does not depend on the other rows, and it costs nothing any more. The host looks once per step, at
which rows are left; all else stays on the device, where that has float64.

Reference: Dormand & Prince 1980, J. Comput. Appl. Math. 6; Hairer, Norsett & Wanner, Solving ODEs I, Sec. II.4.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from .precision import double_device, in_double

# Dormand-Prince 5(4): nodes, stage weights, and the difference of the two solutions. The last stage is the first of
# the next step.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

_SAFETY, _MIN_FACTOR, _MAX_FACTOR = 0.9, 0.2, 10.0

RightHandSide = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
ErrorNorm = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ErrorTracker = Callable[..., torch.Tensor]


@dataclass
class OdeSolution:
    """Result of an integration, one entry per row.

    Args:
        y: state at the end, or where a row stopped; shape (B, D).
        t: time reached, float64 of shape (B,).
        nfe: evaluations of the right-hand side, int64 of shape (B,).
        error: sum of the norms of the local error estimates, in units of the tolerance; shape (B,).
        tracked: what `track` made of the local errors; shape (B,).
        success: whether the row reached the end within `max_nfe`; bool of shape (B,).
    """

    y: torch.Tensor
    t: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    tracked: torch.Tensor
    success: torch.Tensor


def root_mean_square(error: torch.Tensor, tolerance: torch.Tensor) -> torch.Tensor:
    """Root mean square of error / tolerance over each row; (B, D), (B, D) -> (B,)."""
    return (error / tolerance).square().mean(dim=1).sqrt()


def dormand_prince(
    rhs: RightHandSide,
    y: torch.Tensor,
    t_start: float,
    t_end: float,
    *,
    rtol: float,
    atol: float,
    max_nfe: int,
    norm: ErrorNorm = root_mean_square,
    track: ErrorTracker | None = None,
    longest: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> OdeSolution:
    """Integrate every row of `y` from `t_start` to `t_end`, in either direction.

    Where `y` requires a gradient, the accepted steps are made once more, fixed, and with a graph: gradients are those
    of the computed numbers, and no rejected step has part in them.

    Args:
        rhs: `(y, t, rows) -> dy/dt` with y of shape (n, D), t (n,) in the dtype of y, and `rows` (n,) the places of
            the remaining rows in the batch.
        y: states at the start, shape (B, D); the arithmetic is in its dtype, times are in float64, on the
            host where the device of `y` has none.
        t_start: time of the start.
        t_end: time of the end; no evaluation is made beyond it.
        rtol: relative tolerance of the local error.
        atol: absolute tolerance of the local error, in units of y.
        max_nfe: number of evaluations after which a row stops where it is.
        norm: `(error, tolerance) -> (n,)`; a step is accepted if it is at most 1.
        track: `(tracked, local error, y, y at the end, t, t at the end) -> tracked`, an estimate of the error of y
            that grows or shrinks with the flow; the first and last of shape (n,), float64.
        longest: largest length of a step from t, (n,) -> (n,); no bound by default.

    Raises:
        ValueError: if a tolerance or `max_nfe` is not allowed.
    """
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(f"rtol = {rtol} and atol = {atol}; they must not be negative, and not both 0.")
    if max_nfe < 8:
        raise ValueError(f"max_nfe = {max_nfe}; one step takes 8 evaluations, so allow at least that.")
    if len(y) == 0 or t_start == t_end:
        solution = _Integration(y, t_start).result
        solution.success.fill_(True)
        return solution
    with torch.no_grad():
        run = _Integration(y.detach(), t_start)
        run.adapt(rhs, t_end, rtol, atol, max_nfe, norm, track, longest)
    if torch.is_grad_enabled() and y.requires_grad:
        run.result.y = repeat(rhs, y, run.steps)
    return run.result


def repeat(rhs: RightHandSide, y: torch.Tensor, steps: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """Make the steps of an integration once more, with a graph.

    Args:
        rhs: as for `dormand_prince`.
        y: states at the start, shape (B, D).
        steps: rows that were accepted, their times and the lengths of their steps, in order.

    Returns:
        The states at the end, shape (B, D).
    """
    for rows, t, h in steps:
        if len(rows):
            part = y[rows]
            stage, _, _ = _stages(rhs, part, t, rhs(part, t.to(y), rows), h, rows)
            y = y.index_put((rows,), stage)
    return y


@dataclass
class _Rows:
    """State of the remaining rows; y and slope in dtype and place of the states, all else on `double_device`."""

    rows: torch.Tensor
    y: torch.Tensor
    t: torch.Tensor
    slope: torch.Tensor
    step: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    tracked: torch.Tensor
    rejected: torch.Tensor

    def select(self, mask: torch.Tensor) -> "_Rows":
        return _Rows(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


class _Integration:
    """The result of the rows that have left, and the accepted steps of all."""

    def __init__(self, y: torch.Tensor, t_start: float):
        t = torch.full((len(y),), t_start, dtype=torch.float64, device=double_device(y.device))
        nfe, success = torch.zeros_like(t, dtype=torch.int64), torch.zeros_like(t, dtype=torch.bool)
        self.result = OdeSolution(y.clone(), t, nfe, torch.zeros_like(t), torch.zeros_like(t), success)
        self.steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def adapt(self, rhs, t_end: float, rtol, atol, max_nfe: int, norm, track, longest) -> None:
        """Step every row to the end, or as far as it comes."""
        y, t, zeros = self.result.y, self.result.t.clone(), torch.zeros_like(self.result.t)
        direction, smallest = (1.0 if t_end > float(t[0]) else -1.0), 1e-14 * abs(t_end - float(t[0]))
        rows = torch.arange(len(y), device=t.device)
        slope = rhs(y, t.to(y), rows)
        step = _initial_step(rhs, y, t, slope, rows, t_end, rtol, atol, norm)
        rejected = torch.zeros_like(self.result.success)
        state = _Rows(rows, y, t, slope, step, torch.full_like(rows, 2), zeros, zeros, rejected)
        while len(state.rows):
            remaining = (t_end - state.t).abs()
            if longest is not None:
                state.step = torch.minimum(state.step, longest(state.t))
            last = state.step >= remaining
            h = direction * torch.minimum(state.step, remaining)
            y, slope, local = _stages(rhs, state.y, state.t, state.slope, h, state.rows)
            local_norm = in_double(norm(local, atol + rtol * torch.maximum(state.y.abs(), y.abs())))
            t = torch.where(last, t_end, state.t + h)
            tracked = state.tracked if track is None else track(state.tracked, local, state.y, y, state.t, t)
            accepted, state.step = _judge(local_norm, h.abs(), state.rejected)
            self.steps.append((state.rows[accepted], state.t[accepted], h[accepted]))
            here = accepted.to(y.device)[:, None]
            state.y, state.slope = torch.where(here, y, state.y), torch.where(here, slope, state.slope)
            state.t = torch.where(accepted, t, state.t)
            state.error = state.error + torch.where(accepted, local_norm, 0.0)
            state.tracked = torch.where(accepted, tracked, state.tracked)
            state.nfe, state.rejected = state.nfe + 6, ~accepted
            success = accepted & last
            done = success | (state.nfe + 6 > max_nfe) | (state.step <= smallest)
            if done.any():  # the one look of the host
                self._leave(state.select(done), success[done])
                state = state.select(~done)

    def _leave(self, ended: _Rows, success: torch.Tensor) -> None:
        result, rows = self.result, ended.rows
        result.y = result.y.index_put((rows,), ended.y)
        result.t[rows], result.nfe[rows], result.success[rows] = ended.t, ended.nfe, success
        result.error[rows], result.tracked[rows] = ended.error, ended.tracked


def _judge(norm: torch.Tensor, h: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which steps of length h are accepted, and the lengths of the next ones."""
    accepted = norm <= 1
    factor = (_SAFETY * norm**-0.2).clamp(_MIN_FACTOR, _MAX_FACTOR)
    factor = torch.where(rejected | ~accepted, factor.clamp(max=1.0), factor)
    return accepted, h * torch.where(norm.isfinite(), factor, _MIN_FACTOR)


def _stages(rhs, y, t, slope, h, rows):
    """One step: new state, slope there, and the estimate of the local error."""
    slopes = [slope]
    h_y = h.to(y)[:, None]
    for node, weights in zip(_NODES, _STAGES, strict=True):
        stage = y + h_y * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
        # t + h is the end itself in the last stages of the last step, up to rounding of float64.
        slopes.append(rhs(stage, (t + node * h).to(y), rows))
    local = h_y * sum(w * k for w, k in zip(_ERROR, slopes, strict=True) if w)
    return stage, slopes[-1], local


def _initial_step(rhs, y, t, slope, rows, t_end, rtol, atol, norm) -> torch.Tensor:
    """First step size of each row, float64; costs one evaluation. Reference: Hairer et al., Sec. II.4."""
    tolerance = atol + rtol * y.abs()
    size, speed = in_double(norm(y, tolerance)), in_double(norm(slope, tolerance))
    guess = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    span = (t_end - t).abs()
    guess = torch.minimum(guess, span)
    h = torch.where(t < t_end, guess, -guess)
    slope_there = rhs(y + h.to(y)[:, None] * slope, (t + h).to(y), rows)
    bend = in_double(norm(slope_there - slope, tolerance)) / guess
    largest = torch.maximum(speed, bend)
    step = torch.where(largest <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / largest) ** 0.2)
    return torch.minimum(torch.minimum(100 * guess, step), span)
