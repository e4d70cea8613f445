r"""Adaptive Runge-Kutta integration of a batch of independent ODEs, dy/dt = rhs(y, t).

Each row of the batch has its own time, step size, error control and acceptance, and leaves the batch when it is
finished: its result does not depend on the other rows, and it costs nothing any more. Everything stays on the device;
the host looks once per step, at which rows are left.

Reference: Dormand & Prince 1980, J. Comput. Appl. Math. 6; Hairer, Norsett & Wanner, Solving ODEs I, Sec. II.4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

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


@dataclass
class OdeSolution:
    """Result of an integration, one entry per row.

    Args:
        y: state at the end, or where a row stopped; shape (B, D).
        t: time reached, float64 of shape (B,).
        nfe: evaluations of the right-hand side, int64 of shape (B,).
        error: sum of the norms of the local error estimates, in units of the tolerance; shape (B,).
        success: whether the row reached the end within `max_nfe`; bool of shape (B,).
    """

    y: torch.Tensor
    t: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
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
) -> OdeSolution:
    """Integrate every row of `y` from `t_start` to `t_end`, in either direction.

    Args:
        rhs: `(y, t, rows) -> dy/dt` with y of shape (n, D), t (n,) in the dtype of y, and `rows` (n,) the places of
            the remaining rows in the batch.
        y: states at the start, shape (B, D); the arithmetic is in its dtype, times are in float64.
        t_start: time of the start.
        t_end: time of the end; no evaluation is made beyond it.
        rtol: relative tolerance of the local error.
        atol: absolute tolerance of the local error, in units of y.
        max_nfe: number of evaluations after which a row stops where it is.
        norm: `(error, tolerance) -> (n,)`; a step is accepted if it is at most 1.

    Raises:
        ValueError: if a tolerance or `max_nfe` is not allowed.
    """
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(f"rtol = {rtol} and atol = {atol}; they must not be negative, and not both 0.")
    if max_nfe < 8:
        raise ValueError(f"max_nfe = {max_nfe}; one step takes 8 evaluations, so allow at least that.")
    result = OdeSolution(
        y=y.clone(),
        t=torch.full((len(y),), t_start, dtype=torch.float64, device=y.device),
        nfe=torch.zeros(len(y), dtype=torch.int64, device=y.device),
        error=y.new_zeros(len(y)),
        success=torch.zeros(len(y), dtype=torch.bool, device=y.device),
    )
    if len(y) == 0 or t_start == t_end:
        result.success.fill_(True)
        return result
    rows = torch.arange(len(y), device=y.device)
    slope = rhs(y, result.t.to(y), rows)
    t = result.t.clone()
    step = _initial_step(rhs, y, t, slope, rows, t_end, rtol, atol, norm)
    nfe = torch.full_like(result.nfe, 2)
    error, rejected = y.new_zeros(len(y)), torch.zeros_like(result.success)
    direction = 1.0 if t_end > t_start else -1.0

    while len(rows):
        remaining = (t_end - t).abs()
        last = step >= remaining
        h = direction * torch.minimum(step, remaining)
        y_new, slope_new, local = _stages(rhs, y, t, slope, h, rows)
        tolerance = atol + rtol * torch.maximum(y.abs(), y_new.abs())
        local_norm = norm(local, tolerance)
        nfe = nfe + 6
        accepted = local_norm <= 1
        factor = (_SAFETY * local_norm.double() ** -0.2).clamp(_MIN_FACTOR, _MAX_FACTOR)
        factor = torch.where(rejected | ~accepted, factor.clamp(max=1.0), factor)
        factor = torch.where(local_norm.isfinite(), factor, _MIN_FACTOR)
        step = h.abs() * factor
        t = torch.where(accepted, torch.where(last, t_end, t + h), t)
        y = torch.where(accepted[:, None], y_new, y)
        slope = torch.where(accepted[:, None], slope_new, slope)
        error = error + torch.where(accepted, local_norm, 0.0)
        rejected = ~accepted

        success = accepted & last
        stuck = (nfe + 6 > max_nfe) | (step <= 1e-14 * abs(t_end - t_start))
        done = success | stuck
        if done.any():  # the one look of the host
            ended = rows[done]
            result.y[ended], result.t[ended], result.nfe[ended] = y[done], t[done], nfe[done]
            result.error[ended], result.success[ended] = error[done], success[done]
            left = ~done
            rows, y, t, slope, step = rows[left], y[left], t[left], slope[left], step[left]
            nfe, error, rejected = nfe[left], error[left], rejected[left]
    return result


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
    size, speed = norm(y, tolerance).double(), norm(slope, tolerance).double()
    guess = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    span = (t_end - t).abs()
    guess = torch.minimum(guess, span)
    h = torch.where(t < t_end, guess, -guess)
    slope_there = rhs(y + h.to(y)[:, None] * slope, (t + h).to(y), rows)
    bend = norm(slope_there - slope, tolerance).double() / guess
    largest = torch.maximum(speed, bend)
    step = torch.where(largest <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / largest) ** 0.2)
    return torch.minimum(torch.minimum(100 * guess, step), span)
