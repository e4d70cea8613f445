"""Reading the state of a run from a checkpoint, each part checked, no part left out.

accelerate's `load_state` goes on with other random numbers where those of the checkpoint cannot be read, and takes the
optimiser's options from the checkpoint; here the options of the run hold.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError

from .ema import load_average, read_weights

if TYPE_CHECKING:
    import accelerate
    from diffusers.training_utils import EMAModel

logger = logging.getLogger(__name__)

OPTIMIZER, SCALER = "optimizer.bin", "scaler.pt"


def load_state(accelerator: "accelerate.Accelerator", ema: "EMAModel", folder: Path, same_processes: bool) -> None:
    """Read network, average, optimiser, scaler and random states; every process must call it.

    Args:
        accelerator: prepared with one network and one fused AdamW.
        ema: average of the network's parameters.
        folder: checkpoint.
        same_processes: whether the checkpoint is of as many processes; else the random numbers of dropout are new.

    Raises:
        ValueError: naming the file that is missing, cannot be read or does not fit.
    """
    network = accelerator.unwrap_model(accelerator._models[0])
    with _naming(folder / "unet"):
        network.load_state_dict(read_weights(folder / "unet"))
    with _naming(folder / "unet_ema"):
        load_average(network, ema, folder / "unet_ema")
    with _naming(folder / OPTIMIZER):
        _load_optimizer(accelerator._optimizers[0], _load(folder / OPTIMIZER))
    if accelerator.scaler is not None:
        if (folder / SCALER).is_file():
            with _naming(folder / SCALER):
                accelerator.scaler.load_state_dict(_load(folder / SCALER))
        else:
            logger.info(f"{folder.name} has no scale of the loss, as of a run without float16; it is found anew.")
    if same_processes:
        path = folder / f"random_states_{accelerator.process_index}.pkl"
        with _naming(path):
            _set_random_states(_load(path))
    else:
        logger.warning(f"{folder.name} is of another number of processes: the random numbers of dropout are new.")


def _load(path: Path):
    from accelerate.utils.other import load

    return load(path, map_location="cpu", weights_only=True)


def _load_optimizer(optimizer, state: dict) -> None:
    """Read the moments only: the options of a group are those of this run."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = state["state"]
    if sorted(moments) not in ([], list(range(len(parameters)))):
        raise ValueError(f"it has moments of {len(moments)} parameters, the network {len(parameters)}")
    for index, values in moments.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if values[name].shape != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} has shape {tuple(values[name].shape)}")
        if values["step"].numel() != 1:
            raise ValueError(f"the step of parameter {index} is no number")
    now = optimizer.state_dict()
    optimizer.load_state_dict({"state": moments, "param_groups": now["param_groups"]})


def _set_random_states(states: dict) -> None:
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])  # noqa: NPY002 (what accelerate saved)
    torch.set_rng_state(states["torch_manual_seed"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["torch_cuda_manual_seed"])


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever a part of a checkpoint can raise into one error with its name."""
    try:
        yield
    # Unpickling a damaged file raises nearly anything.
    except Exception as error:
        kind = "cannot be read" if not isinstance(error, FileNotFoundError) else "is missing"
        text = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, SafetensorError | KeyError):
            text[0] = f"{type(error).__name__}: {text[0]}"
        raise ValueError(
            f"{path} {kind} or does not fit this run ({text[0][:300]}). Resume from another checkpoint."
        ) from error


def random_state() -> tuple:
    """State of the generators that dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def restore_random_state(state: tuple) -> None:
    """Undo draws since `random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
