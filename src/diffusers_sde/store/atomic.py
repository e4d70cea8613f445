"""Files and folders that are complete or as they were, whenever the process is killed.

What is being written stands beside its place under a hidden name and is renamed when it is on disk. A process that is
killed leaves that hidden name behind and the place untouched: `remove_partials` is for who holds the folder's lock.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn errors of writing in the block into an `OSError` that names the file.

    A full disk gives errors without a name, and one of its own class where safetensors writes.

    Args:
        path: what is written, by the name that a user knows.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextmanager
def replacement(path: str | Path, before: Callable[[Path], None] = lambda partial: None) -> Iterator[Path]:
    """Name of a file beside `path` to write to, which becomes `path` when the block ends without an error.

    Args:
        path: file to be written; its folder must exist.
        before: called with the complete file before it gets its name.

    Raises:
        OSError: if the file cannot be written or renamed; `path` is as it was then.
    """
    path = Path(path)
    # With the name's ending, by which some writers choose the format, and the process, for runs that share a folder.
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with naming(path):
            yield partial
            _to_disk(partial)
            before(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path, stem: str) -> None:
    """Remove what killed writers of files left in a folder.

    Args:
        folder: folder that no other run writes to, see `locked_folder`.
        stem: regular expression of the files' names without their endings.
    """
    for path in folder.glob(".*"):
        if re.fullmatch(rf"\.(?:{stem})\.\d+(?:\.[a-z]+)?", path.name) and not path.is_dir():
            path.unlink()


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
        with naming(target):
            yield partial
            for path in partial.rglob("*"):
                if path.is_file():
                    _to_disk(path)
            replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
