"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(folder: str | Path, overwrite: bool = False, keep: tuple[Path, ...] = ()) -> None:
    """Check that a repository can be written to `folder`, before work is put into it.

    Args:
        folder: where it shall be.
        overwrite: whether another repository there may be replaced.
        keep: files that must not be lost by that.

    Raises:
        ValueError: if `folder` is a file, holds something, or something else than a repository to be replaced.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder.")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{folder} is not empty. Choose another one, or pass --overwrite to replace what is there.")
    if not any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        raise ValueError(f"{folder} holds no model, so --overwrite does not remove it; choose another folder.")
    for path in keep:
        if folder.resolve() in path.resolve().parents:
            raise ValueError(f"{path} is within {folder}, which --overwrite would remove; choose another folder.")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which becomes `folder` when the block ends without an error.

    What a killed run left beside it is removed by the next one. `check_output` comes first: what `folder` holds is
    replaced.
    """
    folder = Path(folder).resolve()
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # killed between the two renames below
    for left in (partial, old):
        if left.exists():
            shutil.rmtree(left)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
