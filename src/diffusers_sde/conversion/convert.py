"""Official checkpoint and configuration -> pipeline."""

import json
from pathlib import Path

import torch

from ..models import NCSNppModel
from ..schedulers import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from . import ncsnpp
from .parameter_map import convert_state_dict
from .pytorch import load_pytorch_checkpoint

Scheduler = ScoreSdeVeScheduler | ScoreSdeVpScheduler | ScoreSdeSubVpScheduler


def read_config(config: str | Path | dict) -> dict:
    """An official configuration from a dictionary or a JSON file of one.

    Raises:
        ValueError: if there is no such file or it is no configuration.
    """
    if not isinstance(config, dict):
        path = Path(config)
        if not path.is_file():
            raise ValueError(f"there is no configuration file {path}; give the path of a JSON file of the official config.")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
    missing = [key for key in ("data", "model", "sampling", "training") if key not in config]
    if missing:
        raise ValueError(f"the configuration lacks {missing}; it needs 'data', 'model', 'sampling' and 'training'.")
    return config


def build_scheduler(config: dict) -> Scheduler:
    """The scheduler, with the official sampler's settings, of an official configuration.

    Raises:
        ValueError: if the SDE is unknown.
    """
    model, sampling, training = config["model"], config["sampling"], config["training"]
    common = {
        "num_train_timesteps": model["num_scales"],
        "snr": sampling["snr"],
        "correct_steps": sampling["n_steps_each"],
        "predictor": sampling["predictor"],
        "corrector": sampling["corrector"],
        "probability_flow": sampling["probability_flow"],
        "denoise_final": sampling["noise_removal"],
        "continuous": training["continuous"],
    }
    beta = {"beta_min": model["beta_min"], "beta_max": model["beta_max"]}
    name = training["sde"].lower()
    if name == "vesde":
        return ScoreSdeVeScheduler(**common, sigma_min=model["sigma_min"], sigma_max=model["sigma_max"])
    if name == "vpsde":
        return ScoreSdeVpScheduler(**common, **beta)
    if name == "subvpsde":
        return ScoreSdeSubVpScheduler(**common, **beta)
    raise ValueError(f"`training.sde` is {training['sde']!r}; allowed are 'vesde', 'vpsde', 'subvpsde'.")


def build_network(config: dict) -> NCSNppModel:
    """The network, with new weights, of an official configuration.

    Raises:
        ValueError: if the architecture is unknown.
    """
    name = config["model"]["name"]
    if name != "ncsnpp":
        raise ValueError(f"`model.name` is {name!r}; networks that can be converted: 'ncsnpp'.")
    return NCSNppModel(**ncsnpp.model_config(config))


def convert_checkpoint(path: str | Path, config: str | Path | dict, use_ema: bool = True):
    """Convert a checkpoint of the official PyTorch code.

    Args:
        path: the `.pth` file.
        config: the official configuration, as a dictionary or the path of a JSON file.
        use_ema: whether to take the moving average of the weights rather than the raw ones.

    Returns:
        A `ScoreSdePipeline` on the CPU, in float32 and evaluation mode.

    Raises:
        ValueError: if the file cannot be read, or any parameter is missing, left over or of another shape.
    """
    from ..pipelines import ScoreSdePipeline

    config = read_config(config)
    scheduler = build_scheduler(config)
    with torch.device("meta"):
        skeleton = build_network(config)
    checkpoint = load_pytorch_checkpoint(path, use_ema)
    state_dict = convert_state_dict(
        checkpoint.state_dict, ncsnpp.parameter_map(skeleton), skeleton.state_dict(), ncsnpp.ignored_names(skeleton)
    )
    network = build_network(config)
    network.load_state_dict(state_dict)
    return ScoreSdePipeline(unet=network.eval(), scheduler=scheduler)
