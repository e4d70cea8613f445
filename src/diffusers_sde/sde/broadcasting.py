"""Coefficients of one number per sample against states of any rank."""

import torch


def expand_to(coefficient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """View `coefficient` so that it multiplies `x` sample by sample.

    Args:
        coefficient: shape () or (B,), one number for the batch or one per sample.
        x: state of shape (B, ...), rank at least 2.

    Returns:
        `coefficient` of shape () or (B, 1, ..., 1). A float64 scalar does not promote a float32 `x`; a float64
        vector is brought to the dtype of `x`, after it was computed in its own precision.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if coefficient.ndim == 0:
        return coefficient
    if coefficient.ndim > 1 or x.ndim < 2 or coefficient.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"time or coefficient of shape {tuple(coefficient.shape)} does not fit a state of shape {tuple(x.shape)}; "
            "give shape () or (batch,) and a state (batch, ...) of rank at least 2."
        )
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))
