"""Random numbers that depend on the place in a run, not on what was drawn before.

A run walks an endless order of images; their places in it are positions. Everything an image needs is drawn from a
generator seeded by (seed, purpose, position), and the data order is a pure function of (seed, position). A run resumed
at any step therefore meets the same numbers as one that never stopped, and two processes the same as one.
"""

import enum

import numpy as np
import torch

from ..seeding import derive_seed

_ORDER, _NOISE, _CROP = range(3)

BLOCK = 8
"""Images that share a generator."""


class Purpose(enum.IntEnum):
    """What random numbers are for; each purpose has numbers of its own."""

    TIME = 0
    NOISE = 1
    FLIP = 2
    DEQUANTIZATION = 3
    PROBE = 4


class ShuffledOrder:
    """An endless order of data set indices: one permutation per epoch, laid end to end.

    Args:
        num_images: size of the data set.
        seed: non-negative.
    """

    def __init__(self, num_images: int, seed: int):
        self.num_images = num_images
        self.seed = seed
        self._epoch: int | None = None
        self._permutation = torch.empty(0, dtype=torch.long)

    def permutation(self, epoch: int) -> torch.Tensor:
        """Order of one epoch, shape (num_images,)."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
            self._permutation = torch.randperm(self.num_images, generator=generator)
            self._epoch = epoch
        return self._permutation

    def indices(self, start: int, count: int) -> torch.Tensor:
        """Indices at the positions start, ..., start + count - 1 of the order, shape (count,)."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.num_images)
            part = self.permutation(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of the order of one epoch."""
    return derive_seed(seed, _ORDER, epoch)


def crop_fractions(seed: int, position: int) -> tuple[float, float]:
    """Where a random crop lies, as fractions in [0, 1) of the room above and to the left."""
    top, left = np.random.default_rng(derive_seed(seed, _CROP, position)).random(2)
    return float(top), float(left)


class PositionNoise:
    """The random numbers of the images at consecutive positions of a run.

    What an image gets is a function of (seed, purpose, position) on one kind of device: the same whatever the batch
    size, the number of processes, or the number of passes per step. Blocks of positions share a generator, which is
    cheaper than one for each image.

    Args:
        seed: of the run, non-negative.
        start: first position.
        count: number of positions B.
        device: where the numbers are drawn.
    """

    def __init__(self, seed: int, start: int, count: int, device: torch.device):
        self.seed = seed
        self.start = start
        self.count = count
        self.device = device

    def uniform(self, purpose: Purpose, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """Uniform on [0, 1), float32, shape (B, *shape)."""
        return self._draw(purpose, shape, torch.Tensor.uniform_)

    def normal(self, purpose: Purpose, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """Standard normal, float32, shape (B, *shape)."""
        return self._draw(purpose, shape, torch.Tensor.normal_)

    def signs(self, purpose: Purpose, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """-1 and 1 with equal chance, float32, shape (B, *shape)."""
        return torch.where(self.uniform(purpose, shape) < 0.5, -1.0, 1.0)

    def _draw(self, purpose: Purpose, shape: tuple[int, ...], fill) -> torch.Tensor:
        first, end = self.start // BLOCK, -(-(self.start + self.count) // BLOCK)
        generator = torch.Generator(self.device)
        numbers = torch.empty((end - first, BLOCK, *shape), device=self.device)
        for block, target in zip(range(first, end), numbers, strict=True):
            generator.manual_seed(derive_seed(self.seed, _NOISE, purpose, block))
            fill(target, generator=generator)
        skipped = self.start - first * BLOCK
        return numbers.flatten(0, 1)[skipped : skipped + self.count]
