"""Checkpoint folders `checkpoint-N` that are complete or absent.

A checkpoint is written beside its place and renamed when it is complete; older ones are removed after that. It holds
`unet/`, `unet_ema/` (diffusers format), `optimizer.bin`, `scheduler.bin`, `random_states_R.pkl` (accelerate) and
`training_args.json`.
"""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

if TYPE_CHECKING:
    import accelerate
    from diffusers.training_utils import EMAModel

LATEST = "latest"
ARGS_NAME = "training_args.json"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-N` folders in `output_dir`, by rising N."""
    folder = Path(output_dir)
    found = [path for path in folder.glob("checkpoint-*") if _is_checkpoint(path)] if folder.is_dir() else []
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """N of a `checkpoint-N` folder: the number of optimiser steps taken."""
    return int(path.name.removeprefix("checkpoint-"))


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name) is not None


def find_checkpoint(output_dir: str | Path, wanted: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means.

    Args:
        output_dir: of the run.
        wanted: "latest", the path of a checkpoint, or the name of one in `output_dir`.

    Returns:
        Its path; `None` if the latest was asked for and there is none.

    Raises:
        ValueError: if a checkpoint that was named does not exist; the message lists those that do.
    """
    existing = list_checkpoints(output_dir)
    if wanted == LATEST:
        return existing[-1] if existing else None
    for path in (Path(wanted), Path(output_dir) / wanted):
        if _is_checkpoint(path):
            return path
    names = ", ".join(path.name for path in existing) or "no checkpoint"
    raise ValueError(
        f"--resume_from_checkpoint {wanted} is not a checkpoint-N folder; {output_dir} holds {names}. Give the path "
        f"of one, its name, or {LATEST!r}."
    )


def replace_folder(new: Path, target: Path) -> None:
    """Put the complete folder `new` in the place of `target`, which need not exist."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(
    accelerator: "accelerate.Accelerator", output_dir: str | Path, step: int, limit: int | None, arguments: dict
) -> Path:
    """Write `checkpoint-step`; every process must call it.

    Args:
        accelerator: prepared, with the hooks of `register_hooks`.
        output_dir: of the run.
        step: optimiser steps taken.
        limit: how many checkpoints to keep, this one included; `None` for all.
        arguments: JSON-serialisable, written beside the state.

    Returns:
        The folder.
    """
    target = Path(output_dir) / f"checkpoint-{step}"
    partial = target.with_name(f".partial-{target.name}")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / ARGS_NAME).write_text(json.dumps(arguments, indent=2) + "\n")
        replace_folder(partial, target)
        remove_old(output_dir, target, limit)
    accelerator.wait_for_everyone()
    return target


def remove_old(output_dir: str | Path, newest: Path, limit: int | None) -> None:
    """Remove the checkpoints of lowest step until `limit` remain; `newest` always stays."""
    if limit is None:
        return
    others = [path for path in list_checkpoints(output_dir) if path.name != newest.name]
    for path in others[: max(0, len(others) - (limit - 1))]:
        # Renamed first, so that a checkpoint half removed is not taken for a whole one.
        doomed = path.with_name(f".old-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def register_hooks(accelerator: "accelerate.Accelerator", ema: "EMAModel") -> None:
    """Have `save_state` and `load_state` keep the network and its average in diffusers format.

    Args:
        accelerator: whose only prepared model is the network.
        ema: built with `model_cls` and `model_config`.
    """

    def save(models, weights, folder):
        if accelerator.is_main_process:
            # EMAModel builds a network to save it; its random initialisation must not move the global generator.
            with torch.random.fork_rng(devices=[]):
                ema.save_pretrained(str(Path(folder) / "unet_ema"))
            for model in models:
                accelerator.unwrap_model(model).save_pretrained(str(Path(folder) / "unet"))
        # What remains in `weights` accelerate would write a second time.
        weights.clear()

    def load(models, folder):
        (model,) = models
        models.clear()
        network = accelerator.unwrap_model(model)
        network.load_state_dict(_read_weights(Path(folder) / "unet"))
        average = _read_weights(Path(folder) / "unet_ema")
        config = json.loads((Path(folder) / "unet_ema" / "config.json").read_text())
        # The decay is the one asked for now; the weights and their number of updates are those of the checkpoint.
        ema.load_state_dict(
            {
                "optimization_step": config["optimization_step"],
                "shadow_params": [average[name] for name, _ in network.named_parameters()],
            }
        )
        ema.to(accelerator.device)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise ValueError(f"the checkpoint is not complete: {path} is missing. Resume from an earlier one.")
    return load_file(path)


def read_arguments(checkpoint: Path) -> dict:
    """What `save_checkpoint` got as `arguments`; empty for a checkpoint of another script."""
    path = checkpoint / ARGS_NAME
    return json.loads(path.read_text()) if path.is_file() else {}
