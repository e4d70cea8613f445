r"""Pseudo-inverses and regularised inverses of linear operators, from A and A* alone.

With A* the adjoint, both sides of

    A* (a A A* + b)^-1 y = (a A* A + b)^-1 A* y

are the same, and for b -> 0 they are A^+ y / a. The right one is solved by conjugate gradients: its right-hand side
lies in the range of its matrix for any y, also one that no image has.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from .broadcasting import expand_to


class LinearOperator(Protocol):
    """What a user's operator must have."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Measurements of images (B, C, H, W); shape (B, ...), of rank at least 2."""

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """A* y; shape (B, C, H, W)."""


def pseudo_inverse(operator: LinearOperator) -> Callable[[torch.Tensor], torch.Tensor]:
    """A^+: the operator's `A_dagger` if it has one, else conjugate gradients on A* A x = A* y from zero."""
    given = getattr(operator, "A_dagger", None)
    return given if given is not None else lambda y: solve_regularized(operator, y, 1.0, 0.0)


def solve_regularized(operator: LinearOperator, y: torch.Tensor, scale: float, shift: float) -> torch.Tensor:
    r"""A* (scale A A* + shift)^-1 y = (scale A* A + shift)^-1 A* y, by conjugate gradients.

    Args:
        operator: with `A` and `A_adjoint`.
        y: measurements, shape (B, ...).
        scale: positive.
        shift: at least 0; 0 gives A^+ y / scale.

    Returns:
        Shape (B, C, H, W).
    """
    return conjugate_gradient(lambda x: scale * operator.A_adjoint(operator.A(x)) + shift * x, operator.A_adjoint(y))


def conjugate_gradient(
    matrix: Callable[[torch.Tensor], torch.Tensor],
    b: torch.Tensor,
    rtol: float = 1e-6,
    max_iterations: int = 256,
) -> torch.Tensor:
    """Solution of matrix(x) = b from x = 0, each row on its own.

    Args:
        matrix: symmetric, positive semi-definite, row by row; `b` lies in its range.
        b: shape (B, ...).
        rtol: a row stops when its residual is at most this fraction of its `b`.
        max_iterations: rows that are not done by then stay as near as they came, which leaves out directions of the
            smallest eigenvalues.

    Returns:
        Shape of `b`. Whether any row is left is looked at after 1, 2, 4, 8, ... iterations, to spare the device
        synchronisations.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    square = _dot(residual, residual)
    target = rtol**2 * square
    for i in range(1, max_iterations + 1):
        image = matrix(direction)
        active = square > target
        step = torch.where(active, square / _dot(direction, image), 0.0)
        x = x + expand_to(step, x) * direction
        residual = residual - expand_to(step, x) * image
        last, square = square, _dot(residual, residual)
        direction = residual + expand_to(torch.where(active, square / last, 0.0), x) * direction
        if i & (i - 1) == 0 and not bool((square > target).any()):
            break
    return x


def check_adjoint(
    operator: LinearOperator,
    x_shape: tuple[int, ...],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    rtol: float = 1e-3,
) -> None:
    """Dot-product test <A u, v> = <u, A* v> on random u and v, which do not touch torch's random state.

    Args:
        operator: to be tested.
        x_shape: (B, C, H, W) of images.
        device: of the test's tensors.
        dtype: likewise.
        rtol: largest difference, as a fraction of |A u| or |A* v|, whichever is larger.

    Raises:
        ValueError: with the numbers seen, if they differ; if A* has another shape than the images, or one is missing.
    """
    missing = [name for name in ("A", "A_adjoint") if not callable(getattr(operator, name, None))]
    if missing:
        raise ValueError(
            f"the operator, a {type(operator).__name__}, has no {' and no '.join(missing)}; it needs the methods A(x) "
            "and A_adjoint(y)."
        )
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(x_shape, generator=generator, dtype=dtype).to(device)
    image = operator.A(u)
    v = torch.randn(image.shape, generator=generator, dtype=dtype).to(device)
    adjoint = operator.A_adjoint(v)
    if adjoint.shape != u.shape:
        raise ValueError(
            f"`A_adjoint` returns shape {tuple(adjoint.shape)} for measurements {tuple(v.shape)} of images "
            f"{tuple(u.shape)}; it must return the shape of the images."
        )
    left, right = _total(image, v), _total(u, adjoint)
    scale = max(_total(image, image), _total(adjoint, adjoint)) ** 0.5
    if not abs(left - right) <= rtol * scale:
        raise ValueError(
            f"`A_adjoint` is not the adjoint of a linear `A`: <A u, v> = {left:.6g} and <u, A* v> = {right:.6g} for "
            f"random u and v, {abs(left - right) / max(scale, 1e-300):.2g} of the norm where {rtol:.2g} is allowed. "
            "A must be linear, without offset; the adjoint of a convolution mirrors its kernel and keeps its boundary."
        )


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products row by row, shape (B,)."""
    return (a * b).flatten(1).sum(dim=1)


def _total(a: torch.Tensor, b: torch.Tensor) -> float:
    """Inner product of the whole batch."""
    return float((a.cpu().double() * b.cpu().double()).sum())
