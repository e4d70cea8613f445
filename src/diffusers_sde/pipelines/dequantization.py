r"""From images of 2^k levels to continuous data, and from densities to bits per dimension.

Of n levels, y = ((n - 1) x + u) / n with u ~ U[0, 1) fills [0, 1) by bins of width 1/n, as in the official code. The
log-probability of the image is at least E[log p(y)] - D log n, and the mean over K draws within the logarithm,

    log 1/K sum_k p(y_k) - D log n,

is a tighter bound that grows with K towards it.

Reference: Theis et al. 2016, arXiv:1511.01844, Sec. 3.1; Burda et al. 2016, arXiv:1509.00519 (K draws).
"""

import math
from collections.abc import Callable

import torch

from ..sde.arguments import real_number
from .image_input import check_unit_range

DequantizationFunction = Callable[[torch.Tensor, torch.Generator | list[torch.Generator] | None], torch.Tensor]
DEQUANTIZATIONS = ("uniform", "none")
EIGHT_BIT = 1 / 256
_OFF_GRID = 0.02  # of a level


def draw_per_image(draw: Callable, generator, batch_size: int, dim: int = 0) -> torch.Tensor:
    """`draw(generator, n)` for the whole batch, or image by image if there is a list of generators.

    Args:
        draw: gives a tensor with n entries along `dim`.
        generator: one, one per image, or `None`.
        batch_size: B.
        dim: of the images in the result.
    """
    if isinstance(generator, list):
        return torch.cat([draw(one, 1) for one in generator], dim=dim)
    return draw(generator, batch_size)


def choose_bin_width(bin_width: float | None, dequantization, levels: int | None) -> float | None:
    """Width of a level of the data, in units of the image range [0, 1]; `None` for continuous data.

    Args:
        bin_width: width that the user gives, if any.
        dequantization: as for the pipeline.
        levels: number of levels in which the images were given; `None` for floating point.

    Raises:
        ValueError: if the arguments are not allowed.
    """
    if not callable(dequantization) and dequantization not in DEQUANTIZATIONS:
        allowed = ", ".join(map(repr, DEQUANTIZATIONS))
        raise ValueError(f"`dequantization` is {dequantization!r}; allowed are {allowed}, or a function.")
    if bin_width is None:
        if levels is not None:
            return 1 / levels
        return EIGHT_BIT if dequantization == "uniform" else None
    bin_width = real_number("bin_width", bin_width)
    if not 0 < bin_width <= 1:
        raise ValueError(f"`bin_width` is {bin_width}; it is in units of the image range [0, 1], as 1/256 for 8 bits.")
    return bin_width


def dequantize(images: torch.Tensor, dequantization, bin_width: float | None, generator) -> torch.Tensor:
    """Images in [0, 1] as continuous data in [0, 1]; same shape.

    Raises:
        ValueError: if uniform noise does not fit the images, or a function returns something else than images.
    """
    if dequantization == "none":
        return images
    if callable(dequantization):
        result = dequantization(images, generator)
        if not isinstance(result, torch.Tensor) or result.shape != images.shape:
            seen = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise ValueError(f"`dequantization` returned {seen}; a tensor of shape {tuple(images.shape)} is needed.")
        check_unit_range(result, "what `dequantization` returned")
        return result.to(images)
    levels = round(1 / bin_width)
    if abs(levels * bin_width - 1) > 1e-6 or levels < 2:
        raise ValueError(f"`bin_width` is {bin_width}; uniform dequantization needs 1 / levels, as 1/256.")
    places = (levels - 1) * images
    distance = float((places - places.round()).abs().max())
    if distance > _OFF_GRID:
        raise ValueError(
            f"an image is {distance:.3g} of a level off the {levels} levels 0, 1/{levels - 1}, ..., 1, so it is not "
            "what uniform dequantization is for. Give uint8, or the bin width that the data have, or "
            "dequantization='none' for continuous data."
        )

    def draw(one, count):
        where = images.device if one is None else one.device
        return torch.rand((count, *images.shape[1:]), generator=one, device=where).to(images)

    return (places + draw_per_image(draw, generator, len(images))) / levels


def bits_per_dim(log_likelihood: torch.Tensor, dims: int, bin_width: float) -> torch.Tensor:
    """-(log p / (D log 2) + log2 w) of a log-density in nats and bins of width w, both in the same units."""
    return -log_likelihood / (dims * math.log(2)) - math.log2(bin_width)
