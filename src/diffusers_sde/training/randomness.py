"""Random numbers that depend on the place in a run, not on what was drawn before.

Everything a step needs is drawn from a generator seeded by (seed, purpose, position), and the data order is a pure
function of (seed, position). A run resumed at any step therefore meets the same numbers as one that never stopped.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..seeding import derive_seed

_ORDER, _STEP, _CROP = range(3)


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
            generator = torch.Generator().manual_seed(derive_seed(self.seed, _ORDER, epoch))
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


def crop_fractions(seed: int, position: int) -> tuple[float, float]:
    """Where a random crop lies, as fractions in [0, 1) of the room above and to the left."""
    top, left = np.random.default_rng(derive_seed(seed, _CROP, position)).random(2)
    return float(top), float(left)


@dataclass(frozen=True)
class StepNoise:
    """The random numbers of one forward and backward pass.

    Attributes:
        t: times, uniform on [t_min, 1], float32, shape (B,).
        noise: standard normal, float32, shape (B, C, H, W).
        flip: which samples to mirror, bool, shape (B,).
    """

    t: torch.Tensor
    noise: torch.Tensor
    flip: torch.Tensor

    @classmethod
    def draw(
        cls, shape: tuple[int, ...], seed: int, micro_step: int, process_index: int, t_min: float, device: torch.device
    ) -> "StepNoise":
        """Draw for a batch of `shape`; the same arguments always give the same numbers on one kind of device."""
        generator = torch.Generator(device).manual_seed(derive_seed(seed, _STEP, micro_step, process_index))
        uniform = torch.rand(shape[0], generator=generator, device=device)
        flip = torch.rand(shape[0], generator=generator, device=device) < 0.5
        noise = torch.randn(shape, generator=generator, device=device)
        return cls(t=t_min + (1 - t_min) * uniform, noise=noise, flip=flip)
