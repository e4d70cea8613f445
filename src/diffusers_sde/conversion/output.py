"""Folders of converted checkpoints: what may be replaced, and writing that is whole or not at all."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..store import Ledger, foreign_entries, record_folder, replacement_folder, restore_folder, shorten


def check_output(folder: str | Path, overwrite: bool = False, keep: Iterable[Path] = ()) -> None:
    """Check that a repository can be written to `folder`, before work is put into it.

    Args:
        folder: where it shall be.
        overwrite: whether a repository there may be replaced that a conversion wrote.
        keep: files that must not be lost by that.

    Raises:
        ValueError: if `folder` is a file, holds something, or something else than what a conversion wrote.
    """
    folder = Path(folder)
    restore_folder(folder.resolve())
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder.")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{folder} is not empty. Choose another one, or pass --overwrite to replace what is there.")
    for path in keep:
        if folder.resolve() in path.resolve().parents:
            raise ValueError(f"{path} is within {folder}, which --overwrite would remove; choose another folder.")
    check_own(folder)


def check_own(folder: Path) -> None:
    """Check that a folder, if it exists, is empty or as a conversion left it.

    Raises:
        ValueError: naming what is not.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not Ledger(folder).exists():
        there = shorten(sorted(os.listdir(folder)))
        raise ValueError(
            f"{folder} has no record of a conversion, so --overwrite does not remove what it holds ({there}). Choose "
            "another folder, or remove it yourself."
        )
    foreign = foreign_entries(folder)
    if foreign:
        raise ValueError(
            f"{folder} holds what is not as a conversion wrote it ({shorten(foreign)}), so --overwrite does not "
            "remove it. Move this away, or choose another folder."
        )


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when the block ends without an error.

    Raises:
        ValueError: if `folder` holds by then what no conversion wrote.
        OSError: if it cannot be written.
    """
    folder = Path(folder).resolve()
    with replacement_folder(folder) as partial:
        yield partial
        record_folder(partial)
        check_own(folder)
