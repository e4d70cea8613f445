"""Files and folders that are complete or as they were, whenever the process is killed.

What is being written stands beside its place under a hidden name and is renamed when it is on disk. A process that is
killed leaves that hidden name behind and the place untouched; the next writer of the same place removes it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacement(path: str | Path) -> Iterator[Path]:
    """Name of a file beside `path` to write to, which becomes `path` when the block ends without an error.

    Args:
        path: file to be written; its folder must exist.

    Raises:
        OSError: if the file cannot be written or renamed; `path` is as it was then.
    """
    path = Path(path)
    # With the name's ending, by which some writers choose the format, and the process, for runs that share a folder.
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file that is complete or as it was."""
    with replacement(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a UTF-8 file that is complete or as it was."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, value, indent: int = 2) -> None:
    """Write a JSON file, keys sorted, that is complete or as it was."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=True) + "\n")


def read_json(path: str | Path, kind: type = dict):
    """Value of a JSON file.

    Args:
        path: file to be read.
        kind: type that the value must have.

    Raises:
        ValueError: naming the file, if it does not hold JSON or another type of value.
        OSError: if it cannot be read.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Restore it, or remove it and start anew.") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; a {kind.__name__} belongs there.")
    return value


def replace_folder(new: Path, target: Path) -> None:
    """Put the complete folder `new` in the place of `target`, which need not exist; they stand in one folder.

    A process killed between the two renames leaves `target` under a hidden name, which `restore_folder` undoes.
    """
    old = _old_name(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        restore_folder(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Undo a `replace_folder` that was killed between its two renames."""
    old = _old_name(target)
    if old.exists() and not target.exists():
        old.rename(target)


@contextmanager
def replacement_folder(target: str | Path) -> Iterator[Path]:
    """Empty folder beside `target` to write into, which becomes `target` when the block ends without an error.

    Args:
        target: folder to be written. Whatever it holds is replaced, so check first that it may be.

    Raises:
        OSError: if it cannot be written or renamed; `target` is as it was then.
    """
    target = Path(target).resolve()
    partial = target.with_name(f".{target.name}.partial")
    restore_folder(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
