"""Checkpoint folders `checkpoint-N` that are complete and intact, or not used.

A checkpoint is written beside its place, gets a manifest of sizes and checksums, and is renamed when it is on disk;
older ones are removed after that. It holds `unet/`, `unet_ema/` (diffusers format), `optimizer.bin`,
`random_states_R.pkl` (accelerate), `training_args.json` and `manifest.json`, whose hash goes into the record of the
output folder: a checkpoint that another run wrote, or that was changed since, is told from the run's own.
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

from ..store import Ledger, file_digest, read_json, replace_folder
from .ema import save_average

if TYPE_CHECKING:
    import accelerate
    from diffusers.training_utils import EMAModel

logger = logging.getLogger(__name__)

LATEST = "latest"
ARGS_NAME = "training_args.json"
MANIFEST_NAME = "manifest.json"


_OWN_NAMES = re.compile(
    r"unet(_ema)?/(config\.json|diffusion_pytorch_model.*)|(optimizer|scheduler)\.bin|scaler\.pt|random_states_\d+\.pkl"
    r"|training_args\.json|manifest\.json"
)


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


def find_checkpoint(output_dir: str | Path, wanted: str, ledger: Ledger | None = None) -> Path | None:
    """Resolve `--resume_from_checkpoint`; damaged checkpoints above the one that is used are logged and renamed.

    Args:
        output_dir: of the run.
        wanted: "latest", the path of a checkpoint, or the name of one in `output_dir`.
        ledger: record of `output_dir`; checkpoints there that it does not list count as damaged.

    Returns:
        Its path; `None` if the latest was asked for and there is none.

    Raises:
        ValueError: if a checkpoint that was named does not exist or is damaged, or all are damaged; the message lists
            those that exist.
    """
    if wanted == LATEST:
        return _find_latest(Path(output_dir), ledger)
    existing = list_checkpoints(output_dir)
    names = ", ".join(path.name for path in existing) or "no checkpoint"
    for path in (Path(wanted), Path(output_dir) / wanted):
        if _is_checkpoint(path):
            reason = damage(path) or _strangeness(path, output_dir, ledger)
            if reason is not None:
                raise ValueError(f"{path} is damaged: {reason}. Resume from another one; {output_dir} holds {names}.")
            return path
    raise ValueError(
        f"--resume_from_checkpoint {wanted} is not a checkpoint-N folder; {output_dir} holds {names}. Give the path "
        f"of one, its name, or {LATEST!r}."
    )


def _find_latest(output_dir: Path, ledger: Ledger | None) -> Path | None:
    faults: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(output_dir)):
        reason = damage(path) or _strangeness(path, output_dir, ledger)
        if reason is None:
            for other, fault in faults:
                logger.warning(f"{other} is damaged: {fault}; the one before it is used instead.")
                set_aside(other, "damaged")
            return path
        faults.append((path, reason))
    if faults:
        raise ValueError(
            f"no checkpoint in {output_dir} is intact: {'; '.join(f'{p.name}: {fault}' for p, fault in faults)}. "
            "Bring one back, or start anew by --overwrite_output_dir instead of --resume_from_checkpoint, or in "
            "another folder."
        )
    return None


def listed_checkpoints(ledger: Ledger) -> list[str]:
    """Names of the checkpoints that runs recorded in their output folder, whether or not they are still there."""
    names = [name.partition("/") for name in ledger.all_names()]
    return [folder for folder, _, file in names if file == MANIFEST_NAME and re.fullmatch(r"checkpoint-\d+", folder)]


def partial_of(target: Path) -> Path:
    """Folder in which a checkpoint is written before it gets its name."""
    return target.with_name(f".partial-{target.name}")


def _strangeness(path: Path, output_dir: str | Path, ledger: Ledger | None) -> str | None:
    """Reason to take a checkpoint for that of another run, or for one changed since; `None` if it is the run's own.

    Checkpoints that were copied into a folder without a record are taken as they are.
    """
    if ledger is None or path.resolve().parent != Path(output_dir).resolve() or not listed_checkpoints(ledger):
        return None
    if ledger.owns(f"{path.name}/{MANIFEST_NAME}"):
        return None
    return "it was written by another run, or changed since this run wrote it"


def set_aside(path: Path, why: str) -> Path:
    """Rename `checkpoint-N` to `why-checkpoint-N`, which nothing here uses or removes; returns the new path."""
    target, number = path.with_name(f"{why}-{path.name}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{why}-{path.name}-{number}")
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
        files = read_manifest(checkpoint)
    except FileNotFoundError:
        return f"{MANIFEST_NAME} is missing"
    except (ValueError, OSError):
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


def read_manifest(checkpoint: Path) -> dict[str, dict]:
    """Files of a checkpoint with "bytes" and "sha256", by names relative to its folder.

    Raises:
        ValueError: if the manifest has another shape, or lists no file.
        OSError: if it cannot be read.
    """
    files = read_json(checkpoint / MANIFEST_NAME).get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{checkpoint / MANIFEST_NAME} lists no files.")
    for name, entry in files.items():
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or ".." in Path(name).parts:
            raise ValueError(f"{checkpoint / MANIFEST_NAME} has no size of {name}.")
    return files


def foreign_files(checkpoint: Path, ledger: Ledger | None = None) -> list[str]:
    """Names of what stands in a checkpoint folder and is not of a training run; all, if it is not known to be of one.

    A checkpoint is known by its manifest, or if that is damaged by the record of the output folder.
    """
    try:
        known = {*read_manifest(checkpoint), MANIFEST_NAME}
    except (ValueError, OSError):
        known = set()
    found = [path for path in sorted(checkpoint.rglob("*")) if not path.is_dir() or path.is_symlink()]
    names = [path.relative_to(checkpoint).as_posix() for path in found]
    if not known and ledger is not None and ledger.lists(f"{checkpoint.name}/{MANIFEST_NAME}"):
        return [name for name in names if not _OWN_NAMES.fullmatch(name)]
    return [name for name in names if name not in known] or ([] if known else ["(nothing of a training run)"])


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; renamed first, so that one half removed is not taken for a whole one."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def save_checkpoint(
    accelerator: "accelerate.Accelerator",
    output_dir: str | Path,
    step: int,
    limit: int | None,
    arguments: dict,
    ledger: Ledger | None = None,
) -> Path:
    """Write `checkpoint-step`; every process must call it.

    Args:
        accelerator: prepared, with the hooks of `register_hooks`.
        output_dir: of the run.
        step: optimiser steps taken.
        limit: how many checkpoints to keep, this one included; `None` for all.
        arguments: JSON-serialisable, written beside the state.
        ledger: record of the folder, in the main process.

    Returns:
        The folder.

    Raises:
        CheckpointError: if it cannot be written, as on a full disk; nothing is left of it then, and nothing else is
            touched.
    """
    target = Path(output_dir) / f"checkpoint-{step}"
    partial = partial_of(target)
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
            if target.exists() and foreign_files(target):
                raise OSError(f"{target} holds files that no training run wrote; move it away")
            if ledger is not None:
                ledger.add(f"{target.name}/{MANIFEST_NAME}", file_digest(partial / MANIFEST_NAME))
            replace_folder(partial, target)
            remove_old(output_dir, target, limit)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(_cannot_write(target, error)) from error
    accelerator.wait_for_everyone()
    return target


def _cannot_write(target: Path, error: Exception) -> str:
    good = [path.name for path in list_checkpoints(target.parent)]
    rest = f"{good[-1]} is intact" if good else "there is no earlier one"
    return (
        f"{target} could not be written ({error}); {rest}. {_advice(target.parent, error)}, and go on by "
        f"--resume_from_checkpoint {LATEST}."
    )


_DISK_FULL = ("No space left", "Disk quota", "file write failed", "File too large")


def _advice(folder: Path, error: Exception) -> str:
    if not any(text in f"{error} {error.__cause__}" for text in _DISK_FULL):
        return "Remove the cause"
    try:
        free = f"The disk has {shutil.disk_usage(folder).free / 1e9:.1f} GB left. "
    except OSError:
        free = ""
    return f"{free}Free some space, or lower --checkpoints_total_limit"


def remove_old(output_dir: str | Path, newest: Path, limit: int | None) -> None:
    """Remove the checkpoints of lowest step until `limit` remain; `newest` always stays."""
    if limit is None:
        return
    others = [path for path in list_checkpoints(output_dir) if path.name != newest.name]
    for path in others[: max(0, len(others) - (limit - 1))]:
        foreign = foreign_files(path)
        if foreign:
            logger.warning(f"{path} stays: no training run wrote {', '.join(foreign[:3])} in it.")
        else:
            remove(path)


def register_hooks(accelerator: "accelerate.Accelerator", ema: "EMAModel") -> None:
    """Have `save_state` keep the network and its average in diffusers format.

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

    accelerator.register_save_state_pre_hook(save)


def read_arguments(checkpoint: Path) -> dict:
    """The `arguments` that `save_checkpoint` was given.

    Raises:
        ValueError: naming the file, if it is missing or holds something else.
    """
    try:
        return read_json(checkpoint / ARGS_NAME)
    except OSError as error:
        raise ValueError(f"{checkpoint / ARGS_NAME} cannot be read ({error}). Resume from another one.") from error
