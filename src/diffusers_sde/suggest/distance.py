r"""The largest distance between two images of a set, exactly, without looking at most pairs.

For any centre c the triangle inequality bounds a distance by two radii,

    |x_i - x_j| <= r_i + r_j,      r_i = |x_i - c|,

so with the images sorted by radius, blocks of pairs are compared in the order of their bounds until a bound is no
larger than the distance already found. A good first distance comes from farthest-point sweeps: from an image to the
one farthest from it, again and again, at one distance per image each.

Pixels and the centre are whole numbers, whose products and sums up to 2^53 float64 holds without rounding: squared
distances are exact integers.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

_BLOCK, _BLOCK_NUMBERS = 512, 2**24  # most images, and numbers, that are taken as float64 at once
_SLACK = 1 + 1e-12  # of a bound, for the rounding of two square roots and their sum


@dataclass(frozen=True)
class LargestDistance:
    """The largest distance found between two images.

    Args:
        distance: Euclidean, in units of the range [0, 255] of a pixel.
        upper_bound: that no two of the images searched exceed; equal to `distance` if the search was complete.
        pair: numbers of the two images.
        num_pairs: pairs that were compared one by one.
    """

    distance: float
    upper_bound: float
    pair: tuple[int, int]
    num_pairs: int

    @property
    def exact(self) -> bool:
        """Whether no other pair can be farther apart."""
        return self.upper_bound <= self.distance


def largest_distance(
    images: torch.Tensor, max_pairs: int = 2 * 10**9, on_progress: Callable[[int], None] = lambda pairs: None
) -> LargestDistance:
    """The largest Euclidean distance between two of the images.

    Args:
        images: uint8, shape (N, ...), N at least 2.
        max_pairs: most pairs to compare. When they are used up the result is a lower bound, with an upper one.
        on_progress: called with the number of pairs of each block that is done.

    Raises:
        ValueError: if there are fewer than two images, or they are not uint8.

    Reference: Song & Ermon 2020, arXiv:2006.09011, Technique 1, which says what it is good for.
    """
    if images.dtype != torch.uint8 or len(images) < 2:
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; at least two images of torch.uint8 are needed."
        )
    x = images.flatten(1)
    squares = squared_distances(x, torch.zeros_like(x[0]))
    radii = squared_distances(x, _centre(x)).sqrt()
    best, pair = _sweep(x, int(radii.argmax()))
    radii, order = radii.sort(descending=True)
    blocks = order.split(block_size(x[0].numel()))
    first = [float(part[0]) for part in radii.split(len(blocks[0]))]  # the largest radius of each block
    compared = 0
    for i, j, bound in _bounds(first, math.sqrt(best)):
        if bound <= math.sqrt(best):
            break
        rows, columns = blocks[i], blocks[j]
        pairs = len(rows) * (len(rows) - 1) // 2 if i == j else len(rows) * len(columns)
        if compared + pairs > max_pairs:
            return LargestDistance(math.sqrt(best), bound, pair, compared)
        product = x[rows].double() @ x[columns].double().T
        squared = squares[rows][:, None] + squares[columns] - 2 * product
        top = int(squared.argmax())
        if (found := float(squared.flatten()[top])) > best:
            best, pair = found, (int(rows[top // len(columns)]), int(columns[top % len(columns)]))
        compared += pairs
        on_progress(pairs)
    return LargestDistance(math.sqrt(best), math.sqrt(best), pair, compared)


def widen(
    found: LargestDistance, take: Callable[[range], torch.Tensor], num_images: int, max_sweeps: int = 2
) -> LargestDistance:
    """Sweeps over a whole set from both ends of the farthest pair of a part of it: a lower bound for the whole.

    Args:
        found: of the part, `pair` in numbers of the whole.
        take: the images of a range of numbers, uint8 of shape (n, ...).
        num_images: of the whole.
        max_sweeps: most passes over the set.

    Returns:
        The largest distance seen. Its upper bound is infinite: no search was made that would tell one.
    """
    size = block_size(take(range(1))[0].numel())
    for _ in range(max_sweeps):
        ends = [(number, take(range(number, number + 1)).flatten(1)[0]) for number in found.pair]
        farthest = []
        for start in range(0, num_images, size):
            images = take(range(start, min(start + size, num_images))).flatten(1)
            for number, end in ends:
                squared = squared_distances(images, end)
                other = int(squared.argmax())
                farthest.append((math.sqrt(float(squared[other])), (number, start + other)))
        distance, pair = max(farthest)
        if distance <= found.distance:
            break
        found = replace(found, distance=distance, pair=pair)
    return replace(found, upper_bound=math.inf)


def block_size(dimension: int) -> int:
    """Number of images of so many numbers each that are taken as float64 at once."""
    return max(1, min(_BLOCK, _BLOCK_NUMBERS // dimension))


def in_float64(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """The images, block by block."""
    for block in images.split(block_size(images[0].numel())):
        yield block.double()


def squared_distances(x: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """Squared distances of 8-bit images, shape (N, D), from a point of whole numbers; exact in float64."""
    return torch.cat([(block - point.double()).square().sum(dim=1) for block in in_float64(x)])


def _centre(x: torch.Tensor) -> torch.Tensor:
    """The mean image, rounded to whole numbers."""
    return (sum(block.sum(dim=0) for block in in_float64(x)) / len(x)).round()


def _sweep(x: torch.Tensor, start: int) -> tuple[float, tuple[int, int]]:
    """Squared distance and pair at which going from each image to the farthest comes to rest."""
    best, pair = -1.0, (start, start)
    while True:
        squared = squared_distances(x, x[start])
        farthest = int(squared.argmax())
        if (value := float(squared[farthest])) <= best:
            return best, pair
        best, pair, start = value, (start, farthest), farthest


def _bounds(first: list[float], distance: float) -> list[tuple[int, int, float]]:
    """Pairs of blocks that may hold a larger distance, with their bounds, the largest bound first."""
    pairs = []
    for i, radius in enumerate(first):
        for j in range(i, len(first)):
            if (bound := (radius + first[j]) * _SLACK) <= distance:
                break
            pairs.append((i, j, bound))
    return sorted(pairs, key=lambda pair: -pair[2])
