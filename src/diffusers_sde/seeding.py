"""Seeds that depend on what they are for, so that results do not depend on the batch or process they ran in."""

from collections.abc import Iterable

import numpy as np
import torch


def derive_seed(*keys: int) -> int:
    """Hash non-negative integers into a seed below 2^63; nearby keys give unrelated seeds."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def image_generators(seed: int, indices: Iterable[int], device: str | torch.device = "cpu") -> list[torch.Generator]:
    """One generator per image: image `index` of `seed` is the same in whatever batch it is drawn.

    Args:
        seed: of the whole set, non-negative.
        indices: numbers of the images within the set.
        device: where the generators draw; numbers differ between CPU and GPU, so the CPU is the default.
    """
    return [torch.Generator(device).manual_seed(derive_seed(seed, index)) for index in indices]
