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

from .ema import load_average, read_weights, save_average

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
        ema: the average of its parameters.
    """

    def save(models, weights, folder):
        if accelerator.is_main_process:
            network = accelerator.unwrap_model(models[0])
            network.save_pretrained(Path(folder) / "unet")
            save_average(network, ema, Path(folder) / "unet_ema")
        # What remains in `weights` accelerate would write a second time.
        weights.clear()

    def load(models, folder):
        network = accelerator.unwrap_model(models[0])
        network.load_state_dict(read_weights(Path(folder) / "unet"))
        load_average(network, ema, Path(folder) / "unet_ema")
        # What remains in `models` accelerate would read a second time.
        models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def read_arguments(checkpoint: Path) -> dict:
    """What `save_checkpoint` got as `arguments`; empty for a checkpoint of another script."""
    path = checkpoint / ARGS_NAME
    return json.loads(path.read_text()) if path.is_file() else {}
