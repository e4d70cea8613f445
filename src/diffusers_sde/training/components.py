"""Scheduler and network of a training run from its options."""

import argparse
import json
from pathlib import Path

import torch

from .presets import resolved_preset

_VE_SIGMA_MAX = 50.0
"""The official value for images of 32 x 32 pixels; the scheduler's own default is that of the 1024-pixel model."""

_SCHEDULERS = {
    "ve": "ScoreSdeVeScheduler",
    "vp": "ScoreSdeVpScheduler",
    "subvp": "ScoreSdeSubVpScheduler",
}


_SETTINGS = (
    *("sigma_min", "sigma_max", "beta_min", "beta_max", "continuous", "num_train_timesteps"),
    *("predictor", "corrector", "snr", "correct_steps", "sampling_eps"),
)
"""Flags of the same name as a setting of a scheduler."""


def build_scheduler(args: argparse.Namespace):
    """The scheduler of `--config` or of `--sde`, with the values that were given.

    Defaults are those of the configuration, else the scheduler's own (VE: sigma_max 50).

    Raises:
        ValueError: if the SDE is unknown or a value is not allowed.
    """
    import diffusers_sde

    if args.sde not in _SCHEDULERS:
        raise ValueError(f"--sde is {args.sde!r}; allowed are {', '.join(_SCHEDULERS)}.")
    scheduler_class = getattr(diffusers_sde, _SCHEDULERS[args.sde])
    given = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    preset = resolved_preset(args)
    if preset is not None:
        from ..conversion.convert import build_scheduler as build_official_scheduler

        official = build_official_scheduler(preset)
        if type(official) is scheduler_class:
            return scheduler_class.from_config(official.config, **given)
    if args.sde == "ve":
        given.setdefault("sigma_max", _VE_SIGMA_MAX)
    return scheduler_class(**given)


def build_network(args: argparse.Namespace) -> torch.nn.Module:
    """The network of `--model_config_name_or_path`, else of `--config`, else the default one, with new weights.

    Raises:
        ValueError: if the configuration cannot be read, names an unknown class, or does not suit the SDE, the
            resolution or the channels.
    """
    from ..models import NCSNppModel

    preset = resolved_preset(args)
    if args.model_config_name_or_path is not None:
        config = read_config(args.model_config_name_or_path)
        network = _network_class(config.get("_class_name", NCSNppModel.__name__)).from_config(config)
    elif preset is not None:
        from ..conversion.convert import build_network as build_official_network

        try:
            network = build_official_network(preset)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"--config {args.config} {' '.join(args.set)}: a value is not allowed: {error}"
            ) from error
    else:
        network = NCSNppModel.from_config(_default_config(args))
    _check_network(network, args)
    if args.gradient_checkpointing:
        if not getattr(network, "_supports_gradient_checkpointing", False):
            raise ValueError(
                f"{type(network).__name__} has no gradient checkpointing; leave --gradient_checkpointing out."
            )
        network.enable_gradient_checkpointing()
    return network


def _default_config(args: argparse.Namespace) -> dict:
    channels = args.channels or 3
    config = {"sample_size": args.resolution or 32, "in_channels": channels, "out_channels": channels}
    if args.sde != "ve":
        # As in the official NCSN++ configs for VP and sub-VP.
        config |= {
            "center_input_sample": False,
            "time_embedding_type": "positional",
            "scale_by_sigma": False,
            "fir": False,
            "progressive_input": "none",
        }
    return config


def read_config(name_or_path: str) -> dict:
    """A network configuration as a dictionary.

    Args:
        name_or_path: JSON file, folder with `config.json`, or Hub repository.

    Raises:
        ValueError: if there is none.
    """
    from ..models import NCSNppModel

    path = Path(name_or_path)
    if path.is_dir():
        path = next((p for p in (path / "config.json", path / "unet" / "config.json") if p.is_file()), path)
    if path.is_file():
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}.") from error
    try:
        return NCSNppModel.load_config(name_or_path)
    except OSError as error:
        raise ValueError(
            f"--model_config_name_or_path {name_or_path} is neither a JSON file, nor a folder with config.json, nor a "
            f"repository that can be reached: {error}"
        ) from error


def _network_class(name: str) -> type:
    import diffusers

    import diffusers_sde

    for library in (diffusers_sde, diffusers):
        network_class = getattr(library, name, None)
        if isinstance(network_class, type) and issubclass(network_class, torch.nn.Module):
            return network_class
    raise ValueError(
        f"the network configuration is of class {name!r}; it must be a network of diffusers_sde or diffusers."
    )


def _check_network(network: torch.nn.Module, args: argparse.Namespace) -> None:
    config = network.config
    if config.in_channels != config.get("out_channels", config.in_channels):  # a classifier has none
        raise ValueError(
            f"the network has in_channels = {config.in_channels} and out_channels = {config.out_channels}; a score "
            "has the channels of its image, so make them equal."
        )
    if args.channels is not None and args.channels != config.in_channels:
        raise ValueError(
            f"--channels is {args.channels}, the network's in_channels {config.in_channels}; they must agree. Leave "
            "--channels out, or change the network configuration."
        )
    size = image_size(network)
    if args.resolution is not None and size != _pair(args.resolution):
        raise ValueError(
            f"--resolution is {args.resolution}, the network's sample_size {config.sample_size}; they must agree. "
            "Leave --resolution out, or change the network configuration."
        )
    if args.sde != "ve" and config.get("scale_by_sigma", False):
        raise ValueError(
            f"the network has scale_by_sigma = True, which suits --sde ve only; --sde is {args.sde}. Set it to false "
            "in the network configuration."
        )
    continuous = args.continuous is not False
    if args.sde == "ve" and continuous and args.config is None and _has_positional_embedding(config):
        raise ValueError(
            "the network has time_embedding_type = 'positional', but in continuous VE training it is conditioned on "
            "sigma; set it to 'fourier' in the network configuration, or train with --no-continuous."
        )
    if not continuous and config.get("time_embedding_type") == "fourier" and config.get("conditional", True):
        raise ValueError(
            "the network has time_embedding_type = 'fourier', but with --no-continuous it is conditioned on labels; "
            "set it to 'positional' in the network configuration."
        )


def check_fit(network: torch.nn.Module, scheduler) -> None:
    """Check that a network on a grid of labels has the grid of the scheduler.

    Raises:
        ValueError: if it has another one.
    """
    config, other = network.config, scheduler.config
    if other.continuous or not config.get("scale_by_sigma", False) or "sigma_max" not in other:
        return
    for name in ("sigma_min", "sigma_max", "num_train_timesteps"):
        if name in config and config[name] != other[name]:
            raise ValueError(
                f"the network has {name} = {config[name]}, the SDE {other[name]}; labels must mean the same noise to "
                f"both. Change the network configuration, or --{name}."
            )


def _has_positional_embedding(config) -> bool:
    return config.get("time_embedding_type") == "positional" and config.get("conditional", True)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def image_size(network: torch.nn.Module) -> tuple[int, int]:
    """(height, width) in pixels from the network's `sample_size`."""
    return _pair(network.config.sample_size)


def is_centered_by_network(network: torch.nn.Module) -> bool:
    """Whether the data range is [0, 1] (the network centres it itself), not [-1, 1]."""
    return bool(network.config.get("center_input_sample", False))
