"""Official configurations as training runs: `--config NAME`, changed by `--set KEY=VALUE` and by the other flags.

A flag whose value has a place in the official configuration is written there, so that network, scheduler and loss are
all built from one source; the rest of the configuration becomes defaults of flags.
"""

import argparse
import difflib
import json
from pathlib import Path

from ..configs import official_config, official_config_names

_SDES = {"vesde": "ve", "vpsde": "vp", "subvpsde": "subvp"}

# Where the value of a flag stands in an official configuration.
_PLACES = {
    "resolution": ("data", "image_size"),
    "channels": ("data", "num_channels"),
    "sigma_min": ("model", "sigma_min"),
    "sigma_max": ("model", "sigma_max"),
    "beta_min": ("model", "beta_min"),
    "beta_max": ("model", "beta_max"),
    "num_train_timesteps": ("model", "num_scales"),
    "continuous": ("training", "continuous"),
    "predictor": ("sampling", "predictor"),
    "corrector": ("sampling", "corrector"),
    "snr": ("sampling", "snr"),
    "correct_steps": ("sampling", "n_steps_each"),
}

_CELEBA_CROP = 140
"""Side in pixels of the central square that the official code cuts out of CelebA's images."""


def read_preset(name_or_path: str, changes: list[str]) -> dict:
    """An official configuration with changes.

    Args:
        name_or_path: such as `ve/cifar10_ncsnpp_continuous`, or a JSON file of one.
        changes: `KEY=VALUE` with the key as `model.nf` and the value as JSON; what is no JSON is a string.

    Raises:
        ValueError: if there is no such configuration, or it has no such key.
    """
    path = Path(name_or_path)
    if name_or_path not in official_config_names() and path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"--config {path} is not JSON: {error}") from error
    else:
        config = official_config(name_or_path)
    for change in changes:
        _change(config, change)
    return config


def _change(config: dict, change: str) -> None:
    key, equals, text = change.partition("=")
    *sections, name = key.split(".")
    place = config
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    if not equals or not isinstance(place, dict) or name not in place:
        known = [f"{s}.{k}" for s, values in config.items() if isinstance(values, dict) for k in values]
        close = difflib.get_close_matches(key, known, n=4, cutoff=0.3)
        raise ValueError(
            f"--set {change!r}: the configuration has no value of that name; give KEY=VALUE, with a key such as "
            f"{', '.join(close or known[:4])}."
        )
    try:
        place[name] = json.loads(text)
    except ValueError:
        place[name] = text


def preset_defaults(config: dict) -> dict:
    """Defaults of flags that make a run what the official code makes of a configuration.

    Raises:
        ValueError: if a value is missing, or there is no such SDE.
    """
    try:
        data, model, training, optim = (config[key] for key in ("data", "model", "training", "optim"))
        sde = training["sde"].lower()
        if sde not in _SDES:
            raise ValueError(f"`training.sde` is {training['sde']!r}; allowed are {', '.join(map(repr, _SDES))}.")
        return {
            "sde": _SDES[sde],
            "seed": config["seed"],
            "center_crop": True,
            "crop_size": _CELEBA_CROP if data["dataset"] == "CELEBA" else None,
            "random_flip": data["random_flip"],
            "uniform_dequantization": data["uniform_dequantization"],
            "loss_reduction": "mean" if training["reduce_mean"] else "sum",
            "loss_weighting": "likelihood" if training["likelihood_weighting"] else "score",
            "total_batch_size": training["batch_size"],
            "max_train_steps": training["n_iters"],
            "learning_rate": optim["lr"],
            "adam_beta1": optim["beta1"],
            "adam_epsilon": optim["eps"],
            "adam_weight_decay": optim["weight_decay"],
            "lr_warmup_steps": optim["warmup"],
            "max_grad_norm": max(optim["grad_clip"], 0),
            "ema_decay": model["ema_rate"],
            "logging_steps": training["log_freq"],
            "checkpointing_steps": training["snapshot_freq_for_preemption"],
            "save_images_steps": training["snapshot_freq"],
        }
    except KeyError as error:
        raise ValueError(f"--config lacks the value {error}, which every official configuration has.") from error


def resolved_preset(args: argparse.Namespace) -> dict | None:
    """The configuration of `--config` with `--set` and the flags written into it; `None` without `--config`."""
    if args.config is None:
        return None
    config = read_preset(args.config, args.set)
    for flag, (section, key) in _PLACES.items():
        value = getattr(args, flag)
        if value is not None:
            config[section][key] = value
    return config
