"""A noise schedule for a data set, as flags of `train_sde.py` and with the reasons for them."""

import math
from dataclasses import dataclass

import torch

from ..configs import official_config, official_config_names
from ..sde import VESDE, VPSDE, SubVPSDE
from .distance import in_float64
from .noise_levels import (
    beta_max_of,
    geometric_ratio,
    langevin_snr,
    langevin_step_size,
    langevin_variance,
    num_noise_levels,
    prior_mismatch,
)

SIGMA_MIN = 0.01
"""In units of the range [0, 1]: 2.55 of 255 grey levels, noise at 40 dB below white.

Large enough to hide the 8-bit grid from the network: levels a distance d apart, blurred by sigma, make a density with
a ripple of 2 exp(-2 pi^2 sigma^2 / d^2) about its mean, 1e-55 here, but 1 % at half a level. Small enough not to be
seen, the more so as the last step of sampling removes it.
"""
BETA_MIN, BETA_MAX = 0.1, 20.0

_SDES = {"vp": VPSDE, "subvp": SubVPSDE}


@dataclass(frozen=True)
class DataSummary:
    """What a schedule needs to know of a data set; all in units of the range [0, 1].

    Args:
        distance: the largest between two images.
        mean: of each pixel over the images, shape (C, H, W).
        variance: likewise.
    """

    distance: float
    mean: torch.Tensor
    variance: torch.Tensor

    def scaled(self, data_range: tuple[int, int]) -> "DataSummary":
        """The same in units of a network's data range."""
        low, high = data_range
        width = high - low
        return DataSummary(width * self.distance, low + width * self.mean, width**2 * self.variance)


def moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each pixel, in units of [0, 1].

    Args:
        images: uint8, shape (N, C, H, W).
    """
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for block in in_float64(images):  # whole numbers, so that nothing is rounded before the mean
        total += block.sum(dim=0)
        squares += block.square().sum(dim=0)
    mean = total / len(images)
    return mean / 255, (squares / len(images) - mean.square()).clamp(min=0) / 255**2


def suggest_ve(data: DataSummary, data_range: tuple[int, int], overlap: float = 0.5, ald_steps: int = 5) -> dict:
    """The VE schedule, with the sampler of Song & Ermon 2020 for it.

    Args:
        data: in units of [0, 1].
        data_range: of the network; the schedule is in its units.
        overlap: of neighbouring noise levels.
        ald_steps: T, steps of annealed Langevin dynamics per level.

    Returns:
        Values by name, among them `flags` for Predictor-Corrector sampling and `ald_flags` for annealed Langevin
        dynamics.

    Raises:
        ValueError: if all images are alike, or a value is not allowed.
    """
    scaled = data.scaled(data_range)
    dimension = data.mean.numel()
    sigma_min, sigma_max = SIGMA_MIN * (data_range[1] - data_range[0]), round_up(scaled.distance)
    levels = num_noise_levels(sigma_min, sigma_max, geometric_ratio(dimension, overlap))
    ratio = (sigma_max / sigma_min) ** (1 / (levels - 1))
    epsilon = langevin_step_size(sigma_min, ratio, ald_steps)
    eta = torch.tensor(epsilon / sigma_min**2, dtype=torch.float64)
    snr = langevin_snr(epsilon, sigma_min)
    config = nearest_config("ve", data.mean.shape[1:], scaled.distance)
    steps = official_config(config)["model"]["num_scales"]
    flags = f"--sde ve --sigma_min {sigma_min:g} --sigma_max {sigma_max:g}"
    sampler = f"--predictor none --corrector ald --correct_steps {ald_steps} --snr {snr:.3g}"
    return {
        "data_range": list(data_range),
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "overlap": overlap,
        "num_noise_levels": levels,
        "ratio": ratio,
        "ald_steps": ald_steps,
        "ald_step_size": epsilon,
        "ald_snr": snr,
        "ald_variance": float(langevin_variance(eta, ratio, ald_steps)),
        "official_config": config,
        "prior": vars(prior_mismatch(VESDE(sigma_min, sigma_max), scaled.mean, scaled.variance, scaled.distance)),
        "flags": f"{flags} --num_train_timesteps {steps}",
        "ald_flags": f"{flags} --num_train_timesteps {levels} {sampler}",
    }


def suggest_vp(name: str, data: DataSummary, data_range: tuple[int, int]) -> dict:
    """The schedule of VP or sub-VP: the official one if it hides the images at t = 1, else a larger beta_max.

    Args:
        name: "vp" or "subvp".
        data: in units of [0, 1].
        data_range: of the network.

    Returns:
        Values by name, among them `flags`; `prior` belongs to `beta_max`, `official_prior` to the official one.
    """
    scaled = data.scaled(data_range)
    needed = beta_max_of(scaled.distance, BETA_MIN)
    beta_max = max(BETA_MAX, math.ceil(needed))

    def mismatch(value: float) -> dict:
        sde = _SDES[name](BETA_MIN, value)
        return vars(prior_mismatch(sde, scaled.mean, scaled.variance, scaled.distance))

    return {
        "data_range": list(data_range),
        "beta_min": BETA_MIN,
        "beta_max": beta_max,
        "needed_beta_max": needed,
        "official_config": nearest_config(name, data.mean.shape[1:], scaled.distance),
        "prior": mismatch(beta_max),
        "official_prior": mismatch(BETA_MAX),
        "flags": f"--sde {name} --beta_min {BETA_MIN:g} --beta_max {beta_max:g}",
    }


def nearest_config(sde: str, size: tuple[int, int], distance: float) -> str:
    """The official configuration of an SDE whose images are nearest in size, for VE also in sigma_max.

    Among those as near: NCSN++, continuous time, the smaller network, the first by name.

    Args:
        sde: "ve", "vp" or "subvp".
        size: (height, width) in pixels.
        distance: the largest between two images, in the data range of VE.
    """
    side = math.sqrt(size[0] * size[1])

    def rank(name: str) -> tuple:
        config = official_config(name)
        model = config["model"]
        return (
            abs(math.log(config["data"]["image_size"] / side)),
            model["name"] != "ncsnpp",
            not config["training"]["continuous"],
            abs(math.log(model["sigma_max"] / distance)) if sde == "ve" else 0,
            model.get("num_res_blocks", 0),
            name,
        )

    return min((name for name in official_config_names() if name.startswith(f"{sde}/")), key=rank)


def round_up(value: float, digits: int = 3) -> float:
    """The next number with so many significant digits; 0 for 0."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{digits}g}")
