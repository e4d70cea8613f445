"""Checkpoint folders `checkpoint-N` that are complete and intact, or not used.

A checkpoint is written beside its place, gets a manifest of sizes and checksums, and is renamed when it is on disk;
older ones are removed after that. It holds `unet/`, `unet_ema/` (diffusers format), `optimizer.bin`, `scheduler.bin`,
`random_states_R.pkl` (accelerate), `training_args.json` and `manifest.json`.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from .ema import load_average, read_weights, save_average

if TYPE_CHECKING:
    import accelerate
    from diffusers.training_utils import EMAModel

logger = logging.getLogger(__name__)

LATEST = "latest"
ARGS_NAME = "training_args.json"
MANIFEST_NAME = "manifest.json"


class CheckpointError(OSError):
    """A checkpoint could not be written; the ones before it are as they were."""


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
    """The checkpoint that `--resume_from_checkpoint` means; damaged ones are told and set aside.

    Args:
        output_dir: of the run.
        wanted: "latest", the path of a checkpoint, or the name of one in `output_dir`.

    Returns:
        Its path; `None` if the latest was asked for and there is none.

    Raises:
        ValueError: if a checkpoint that was named does not exist or is damaged; the message lists those that exist.
    """
    if wanted == LATEST:
        for path in reversed(list_checkpoints(output_dir)):
            reason = damage(path)
            if reason is None:
                return path
            logger.warning(f"{path} is damaged: {reason}; the one before it is used instead.")
            set_aside(path, "damaged")
        return None
    existing = list_checkpoints(output_dir)
    names = ", ".join(path.name for path in existing) or "no checkpoint"
    for path in (Path(wanted), Path(output_dir) / wanted):
        if _is_checkpoint(path):
            reason = damage(path)
            if reason is not None:
                raise ValueError(f"{path} is damaged: {reason}. Resume from another one; {output_dir} holds {names}.")
            return path
    raise ValueError(
        f"--resume_from_checkpoint {wanted} is not a checkpoint-N folder; {output_dir} holds {names}. Give the path "
        f"of one, its name, or {LATEST!r}."
    )


def set_aside(path: Path, why: str) -> Path:
    """Rename `checkpoint-N` to `why-checkpoint-N`, which nothing here uses or removes; returns the new path."""
    target = path.with_name(f"{why}-{path.name}")
    shutil.rmtree(target, ignore_errors=True)
    return path.rename(target)


def write_manifest(folder: Path) -> None:
    """List the files of a folder with sizes and checksums, when all of them are on disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_NAME):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    manifest = folder / MANIFEST_NAME
    with manifest.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"files": files}, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest; `None` if it is as it was written."""
    try:
        files = json.loads((checkpoint / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{MANIFEST_NAME} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST_NAME} cannot be read"
    for name, recorded in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != recorded["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {recorded['bytes']}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != recorded["sha256"]:
                return f"the checksum of {name} differs"
    return None


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

    Raises:
        CheckpointError: if it cannot be written, as on a full disk; nothing is left of it then, and nothing else is
            touched.
    """
    target = Path(output_dir) / f"checkpoint-{step}"
    partial = target.with_name(f".partial-{target.name}")
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (partial / ARGS_NAME).write_text(json.dumps(arguments, indent=2) + "\n")
            write_manifest(partial)
            replace_folder(partial, target)
            remove_old(output_dir, target, limit)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(_cannot_write(target, error)) from error
    accelerator.wait_for_everyone()
    return target


def _cannot_write(target: Path, error: Exception) -> str:
    good = [path.name for path in list_checkpoints(target.parent)]
    free = shutil.disk_usage(target.parent).free / 1e9
    rest = f"{good[-1]} is intact" if good else "there is no earlier one"
    return (
        f"{target} could not be written ({error}); {rest}. The disk has {free:.1f} GB left. Free some space, or lower "
        f"--checkpoints_total_limit, and go on by --resume_from_checkpoint {LATEST}."
    )


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
    """What `save_checkpoint` got as `arguments`."""
    return json.loads((checkpoint / ARGS_NAME).read_text())
