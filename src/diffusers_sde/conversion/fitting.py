"""Which official configurations a checkpoint fits, by the names and shapes of its parameters."""

import json
from collections.abc import Mapping
from functools import cache

import torch

from ..configs import official_config, official_config_names
from .architectures import Architecture, build_architecture
from .parameter_map import MismatchError


def fitting_configs(shapes: Mapping[str, tuple[int, ...]], checkpoint_format: str) -> list[str]:
    """Names of the official configurations whose network has exactly these parameters.

    Several may share one network: shapes do not tell on which SDE it was trained.

    Args:
        shapes: official names to shapes.
        checkpoint_format: `"pytorch"` or `"jax"`.
    """
    fits: dict[str, bool] = {}
    names = []
    for name in official_config_names():
        config = official_config(name)
        network = structure(config)
        if network not in fits:
            fits[network] = _fits(_architecture(name, checkpoint_format), shapes)
        if fits[network]:
            names.append(name)
    return names


def structure(config: dict) -> str:
    """What of a configuration decides on the parameters."""
    values_only = (
        "beta_min",
        "beta_max",
        "sigma_min",
        "sigma_max",
        "dropout",
        "ema_rate",
        "fourier_scale",
        "init_scale",
    )
    model = {key: value for key, value in config["model"].items() if key not in values_only}
    if model["name"] != "ncsn":
        del model["num_scales"]
    return json.dumps([model, config["data"]["image_size"], config["data"]["num_channels"]], sort_keys=True)


@cache
def _architecture(name: str, checkpoint_format: str) -> Architecture | None:
    """The architecture of an official configuration, or None if no checkpoint of the format can exist."""
    try:
        return build_architecture(official_config(name), checkpoint_format)
    except ValueError:
        return None


def _fits(architecture: Architecture | None, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    if architecture is None:
        return False
    used = {name for source in architecture.parameter_map.values() for name in source.names}
    if used - set(shapes) or set(shapes) - used - set(architecture.ignored):
        return False
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        architecture.convert(tensors)
    except MismatchError:
        return False
    return True
