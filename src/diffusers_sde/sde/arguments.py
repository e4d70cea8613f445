"""Numbers that users give, read once and in one way: Python's, NumPy's, or tensors of one number."""

import operator


def whole_number(name: str, value, at_least: int = 1) -> int:
    """A count as an `int`.

    Args:
        name: argument, for the message.
        value: `int`, a NumPy integer or another object that is an integer; no truth value.
        at_least: smallest number that is allowed.

    Raises:
        ValueError: for anything else, whole floats included.
    """
    try:
        number = None if _is_truth_value(value) else operator.index(value)
    except (TypeError, ValueError):  # no integer, an array of several
        number = None
    if number is None or number < at_least:
        raise ValueError(f"`{name}` is {value!r}; it must be an integer of at least {at_least}.")
    return number


def real_number(name: str, value) -> float:
    """A number as a `float`, which may be NaN or infinite.

    Args:
        name: argument, for the message.
        value: `int`, `float`, a NumPy number or a tensor of shape (); no truth value, text or list.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, str | bytes) and not _is_truth_value(value) and getattr(value, "ndim", 0) == 0:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    raise ValueError(f"`{name}` is {value!r}; give one number.")


def _is_truth_value(value) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
