"""A second, finer solution of rows whose error the solver cannot estimate by itself.

Local errors are known from each step; how far the flow carries them apart is not. The estimates of both solvers hold
to first order, for small errors of the path. Where errors of the path are percents of the spread of the states, as
under rough networks or far from the data, the flow is followed once more with smaller tolerances. The difference of
the two solutions is the error.
"""

import torch

STATE_ERROR = 0.03  # of a path, relative to the spread of the states, up to which estimates are trusted
_FINER = 8.0  # times smaller tolerances; errors fall by 2 to 8
_LEAST_TOLERANCE = 10.0  # of the rounding error


def to_check(check: bool | None, state_error: torch.Tensor, success: torch.Tensor) -> torch.Tensor:
    """Rows to follow once more.

    Args:
        check: all of them, none, or (`None`) those whose path is not to be trusted.
        state_error: estimated error of the path relative to the spread of the states, shape (B,).
        success: whether the row reached the end, bool of shape (B,).
    """
    if check is None:
        return success & ~(state_error <= STATE_ERROR)
    return success & check


def finer(rtol: float, atol: float, dtype: torch.dtype) -> tuple[float, float]:
    """Tolerances of the second solution, not below what `dtype` can resolve."""
    least = _LEAST_TOLERANCE * torch.finfo(dtype).eps
    rtol, atol = (min(value, max(value / _FINER, least)) for value in (rtol, atol))
    return rtol, atol
