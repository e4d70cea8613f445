"""Official checkpoint and configuration -> pipeline."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from ..configs import official_config, official_config_names
from ..schedulers import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from .architectures import LABEL_CONDITIONED, Architecture, as_run, build_architecture, build_network
from .checkpoint import OfficialCheckpoint, check_weights, detect_format
from .fitting import fitting_configs
from .jax import load_jax_checkpoint
from .noise_levels import schedule_of_file, take_tables
from .parameter_map import MismatchError
from .pytorch import load_pytorch_checkpoint

__all__ = ["Conversion", "build_network", "build_scheduler", "convert", "convert_checkpoint", "load_checkpoint"]

Scheduler = ScoreSdeVeScheduler | ScoreSdeVpScheduler | ScoreSdeSubVpScheduler


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint and what is to be said about it.

    Args:
        pipeline: `ScoreSdePipeline` on the CPU, in float32 and evaluation mode.
        config: the official configuration, with the noise schedule of the file.
        config_name: name of the configuration, if it was given by name.
        format: `"pytorch"` or `"jax"`.
        use_ema: whether the weights are the moving average.
        step: number of optimisation steps, if the file says.
        ema_decay: decay of the moving average, if the file says.
        num_parameters: number of weights of the network.
        changes: settings of the noise schedule that were taken from the file, against the configuration given.
        notes: what else is worth knowing about the file and the configuration.
        unused: entries of the file that did not enter the conversion.
    """

    pipeline: Any
    config: dict
    config_name: str | None
    format: str
    use_ema: bool
    step: int | None
    ema_decay: float | None
    num_parameters: int
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def official_name(self) -> str | None:
        """Name of the official configuration, if the checkpoint is one of it in every respect."""
        return None if self.changes else self.config_name


def read_config(config: str | Path | dict) -> dict:
    """An official configuration from its name, a JSON file, or a dictionary.

    Raises:
        ValueError: if there is no such configuration or file, or it is no configuration.
    """
    if not isinstance(config, dict):
        name = str(config)
        path = Path(config)
        if name in official_config_names() or not path.is_file():
            if path.suffix == ".json":
                raise ValueError(f"there is no configuration file {path}.")
            return official_config(name)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} holds no JSON object; it must be an official configuration.")
    missing = [key for key in ("data", "model", "sampling", "training") if not isinstance(config.get(key), dict)]
    if missing:
        raise ValueError(f"the configuration lacks {missing}; it needs 'data', 'model', 'sampling' and 'training'.")
    return config


def build_scheduler(config: dict) -> Scheduler:
    """The scheduler, with the official sampler's settings, of an official configuration.

    Raises:
        ValueError: if the SDE is unknown or a setting is missing.
    """
    try:
        return _build_scheduler(config)
    except KeyError as error:
        raise ValueError(f"the configuration lacks {error}.") from error


def _build_scheduler(config: dict) -> Scheduler:
    model, sampling, training = config["model"], config["sampling"], config["training"]
    common = {
        "num_train_timesteps": model["num_scales"],
        "snr": sampling["snr"],
        "correct_steps": sampling["n_steps_each"],
        "predictor": sampling["predictor"],
        "corrector": sampling["corrector"],
        "probability_flow": sampling["probability_flow"],
        "denoise_final": sampling["noise_removal"],
        # One official file has a slip of the pen there; such a network cannot be trained on continuous time.
        "continuous": training["continuous"] and model["name"] not in LABEL_CONDITIONED,
    }
    name = training["sde"].lower()
    if name == "vesde":
        return ScoreSdeVeScheduler(**common, sigma_min=model["sigma_min"], sigma_max=model["sigma_max"])
    if name not in ("vpsde", "subvpsde"):
        raise ValueError(f"`training.sde` is {training['sde']!r}; allowed are 'vesde', 'vpsde', 'subvpsde'.")
    cls = ScoreSdeVpScheduler if name == "vpsde" else ScoreSdeSubVpScheduler
    return cls(**common, beta_min=model["beta_min"], beta_max=model["beta_max"])


def load_checkpoint(path: str | Path, use_ema: bool = True) -> OfficialCheckpoint:
    """Read an official checkpoint, PyTorch or JAX as its content shows, with all values finite.

    Args:
        path: the file.
        use_ema: whether to take the moving average of the weights rather than the raw ones.

    Raises:
        ValueError: if the file cannot be read.
    """
    load = load_pytorch_checkpoint if detect_format(path) == "pytorch" else load_jax_checkpoint
    checkpoint = load(path, use_ema)
    check_weights(checkpoint, path)
    return checkpoint


def convert(path: str | Path, config: str | Path | dict, use_ema: bool = True) -> Conversion:
    """Convert a checkpoint of the official code, PyTorch or JAX, and tell what was found.

    Args:
        path: the file.
        config: the official configuration: its name, a JSON file of one, or a dictionary.
        use_ema: whether to take the moving average of the weights rather than the raw ones.

    Raises:
        ValueError: if the file cannot be read, if its noise levels are none of the official kind or those of another
            configuration, or if any parameter is missing, left over or of another shape; the error then names the
            official configurations that would fit.
    """
    from ..pipelines import ScoreSdePipeline

    name = None if isinstance(config, dict) or str(config) not in official_config_names() else str(config)
    config = read_config(config)
    build_scheduler(config)  # a wrong configuration is told before the work
    architecture = build_architecture(config, detect_format(path))
    checkpoint = load_checkpoint(path, use_ema)
    try:
        schedule = schedule_of_file(config, take_tables(checkpoint.state_dict), name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    notes = tuple(_notes(config, checkpoint))
    config = schedule.config
    if schedule.changes:
        architecture = build_architecture(config, checkpoint.format)
    network = _network(checkpoint, architecture, path)
    return Conversion(
        pipeline=ScoreSdePipeline(unet=network, scheduler=build_scheduler(config)),
        config=config,
        config_name=name,
        format=checkpoint.format,
        use_ema=use_ema,
        step=checkpoint.step,
        ema_decay=checkpoint.ema_decay,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        changes=schedule.changes,
        notes=notes,
        unused=checkpoint.unused + schedule.unused,
    )


def _network(checkpoint: OfficialCheckpoint, architecture: Architecture, path: str | Path) -> ModelMixin:
    """The network with the weights of the checkpoint, which are taken out of it."""
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.state_dict.items()}
    try:
        return architecture.load(architecture.convert(checkpoint.state_dict))
    except MismatchError as error:
        fits = fitting_configs(shapes, checkpoint.format)
        hint = f"These official ones have such a network: {', '.join(fits)}." if fits else "No official one has them."
        raise MismatchError(f"{path}: {error} {hint}") from None


def _notes(config: dict, checkpoint: OfficialCheckpoint) -> Iterator[str]:
    """Where file and configuration differ without an effect on the network."""
    rate, decay = config["model"].get("ema_rate"), checkpoint.ema_decay
    if decay is not None and isinstance(rate, (int, float)) and not math.isclose(decay, rate, rel_tol=1e-6):
        yield f"the moving average has decay {decay:g}, from the file; the configuration has {rate}"
    norm = config["model"].get("normalization")
    run = as_run(config, checkpoint.format)["model"].get("normalization")
    if norm != run:
        yield f"normalization is {run!r}, which the official code has whatever its configuration is (here {norm!r})"


def convert_checkpoint(path: str | Path, config: str | Path | dict, use_ema: bool = True):
    """Convert a checkpoint of the official code, PyTorch or JAX.

    Args:
        path: the file; its format is told from its content.
        config: the official configuration: its name, such as `ve/cifar10_ncsnpp_continuous`, the path of a JSON file
            of one, or a dictionary.
        use_ema: whether to take the moving average of the weights rather than the raw ones.

    Returns:
        A `ScoreSdePipeline` on the CPU, in float32 and evaluation mode.

    Raises:
        ValueError: as `convert`.

    Warns:
        UserWarning: of each setting of the noise schedule that the file has otherwise than the configuration.
    """
    conversion = convert(path, config, use_ema)
    for change in conversion.changes:
        warnings.warn(f"{path}: {change}", stacklevel=2)
    return conversion.pipeline
