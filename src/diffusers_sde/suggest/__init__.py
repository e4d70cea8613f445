"""What a data set says of the noise schedule, and samples of the corrector's signal-to-noise ratio."""

from .corrector import CorrectorTuning
from .distance import LargestDistance, largest_distance
from .noise_levels import (
    PriorMismatch,
    beta_max_of,
    geometric_ratio,
    langevin_snr,
    langevin_step_size,
    num_noise_levels,
    overlap_of,
    prior_mismatch,
)

__all__ = [
    "CorrectorTuning",
    "LargestDistance",
    "PriorMismatch",
    "beta_max_of",
    "geometric_ratio",
    "langevin_snr",
    "langevin_step_size",
    "largest_distance",
    "num_noise_levels",
    "overlap_of",
    "prior_mismatch",
]
