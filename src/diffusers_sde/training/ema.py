"""The average of the weights: diffusers' `EMAModel` with folders that stand on their own.

`EMAModel.save_pretrained` copies the averages into a network built anew, whose buffers are not those of the trained
one: Fourier frequencies are drawn at random. Here the trained network is saved with its averages swapped in. The
folder keeps diffusers' layout, with the state of the average in `config.json`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


@contextmanager
def averaged_weights(network: torch.nn.Module, ema: "EMAModel") -> Iterator[torch.nn.Module]:
    """The network in evaluation mode with its averaged weights; inside only."""
    was_training = network.training
    parameters = list(network.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    network.eval()
    try:
        yield network
    finally:
        ema.restore(parameters)
        network.train(was_training)


def save_average(network: torch.nn.Module, ema: "EMAModel", folder: Path) -> None:
    """Write the network with averaged weights, loadable by `from_pretrained`, and the state of the average."""
    with averaged_weights(network, ema):
        network.save_pretrained(folder)
    path = folder / CONFIG_NAME
    state = {name: value for name, value in ema.state_dict().items() if name != "shadow_params"}
    path.write_text(json.dumps(json.loads(path.read_text()) | state, indent=2, sort_keys=True) + "\n")


def load_average(network: torch.nn.Module, ema: "EMAModel", folder: Path) -> None:
    """Read the averages and their number of updates; the decay stays as asked for now.

    Args:
        network: names the parameters.
        ema: of its parameters; changed in place.
        folder: written by `save_average` or by `EMAModel.save_pretrained`.

    Raises:
        ValueError: if a file is missing or does not fit.
    """
    weights = read_weights(folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    device = ema.shadow_params[0].device
    averages = [weights[name] for name, _ in network.named_parameters()]
    for (name, parameter), average in zip(network.named_parameters(), averages, strict=True):
        if parameter.shape != average.shape:
            raise ValueError(f"{name} has shape {tuple(average.shape)}, the network's {tuple(parameter.shape)}.")
    if type(config["optimization_step"]) is not int or config["optimization_step"] < 0:
        raise ValueError(f"optimization_step is {config['optimization_step']!r}.")
    ema.load_state_dict({"optimization_step": config["optimization_step"], "shadow_params": averages})
    ema.to(device)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder of diffusers format, by name.

    Raises:
        ValueError: if they are missing.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise ValueError(f"the checkpoint is not complete: {path} is missing. Resume from an earlier one.")
    return load_file(path)
