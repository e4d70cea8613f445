"""Folders of results that belong to one set of settings.

Whatever fixes results stands in their folder as `settings.json`. A run goes on in a folder of its own settings and is
refused by any other, so that no result is ever put together from two. Files of others may stand beside the results:
they are neither counted nor touched.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from .atomic import read_json, remove_partials, write_json
from .ledger import LEDGER_NAME
from .lock import LOCK_NAME, locked_folder, others_in

SETTINGS_NAME = "settings.json"
_CLAIM_WAIT = 60.0  # seconds; claiming reads and removes files, and draws nothing


def check_settings(found: dict, wanted: dict, *, place: str | Path, what: str, overwrite: bool) -> bool:
    """Compare the settings of stored results with those of a run.

    Args:
        found: settings of what is stored.
        wanted: settings of the run.
        place: file or folder of the results, for the message.
        what: name of the results in the plural, for the message.
        overwrite: whether results of other settings may be replaced.

    Returns:
        Whether they are equal, so that the run goes on with what is stored.

    Raises:
        ValueError: if they differ and nothing may be overwritten.
    """
    if found == wanted:
        return True
    if not overwrite:
        differing = [key for key in sorted({*wanted, *found}) if found.get(key) != wanted.get(key)]
        raise ValueError(
            f"{place} holds {what} of other settings ({', '.join(differing)} differ). Choose another --output, or "
            "pass --overwrite to replace them."
        )
    return False


def claim(
    folder: Path,
    settings: dict,
    *,
    what: str,
    marks: Collection[str],
    results: Callable[[], Sequence[Path]],
    stems: str,
    reset: Callable[[], None] = lambda: None,
    overwrite: bool = False,
    num_processes: int = 1,
) -> None:
    """Make a folder of results the own one of these settings.

    Args:
        folder: folder of results, made if it does not exist.
        settings: what fixes the results, as JSON has it.
        what: name of the results in the plural, for messages.
        marks: keys that settings of this kind of results always have, by which they are known from others.
        results: gives the files that earlier runs wrote there; they go when results of other settings are replaced.
        stems: regular expression of the results' names without their endings; what killed writers of them left goes.
        reset: called when the folder holds no result of other settings any more, before it gets these settings.
        overwrite: whether results of other settings may be removed.
        num_processes: number of processes that share the folder.

    Raises:
        ValueError: if the folder holds results of other settings, unless they may be overwritten; if what it holds is
            not known to be of a run of this kind; if another run, or more than one process, is at work there while
            something has to be removed.
        OSError: if the folder cannot be written to.
    """
    with locked_folder(folder, f"{LOCK_NAME}-claim", wait=_CLAIM_WAIT):
        path = folder / SETTINGS_NAME
        found, files = read_settings(path, what, marks), results()
        if found is None:
            _check_unclaimed(folder, files, what, overwrite)
        elif found != settings:
            if files or num_processes > 1:
                check_settings(found, settings, place=folder, what=what, overwrite=overwrite)
            if num_processes > 1:
                raise ValueError(f"--overwrite works in one process alone; or remove {folder} first.")
            if others_in(folder):
                raise ValueError(
                    f"another run is writing to {folder}. Wait until it ends, or choose another --output."
                )
            for file in files:
                file.unlink()
        reset()
        write_json(path, settings)
        if not others_in(folder):
            remove_partials(folder, rf"{stems}|settings")


def read_settings(path: Path, what: str, marks: Collection[str]) -> dict | None:
    """Settings of the results in a folder; `None` if there are none.

    Args:
        path: their file.
        what: name of the results in the plural, for messages.
        marks: keys that settings of this kind of results always have.

    Raises:
        ValueError: naming the file, if it is damaged, or settings of something else.
    """
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise ValueError(f"{path} is not a file. Choose another --output, or move it.")
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{error} Without it nobody knows what the {what} in {path.parent} are: choose another --output, or move "
            "them away with it."
        ) from error
    if not set(marks) <= set(found):
        raise ValueError(
            f"{path} is not of a run that writes {what}, so it is not replaced, with --overwrite neither. "
            "Choose another --output."
        )
    return found


def check_file(path: Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse, before any work, to write a result over a file of something else.

    Args:
        path: file to be written. It may be missing or empty.
        what: name of the result, for the message.
        is_ours: `path -> bool`, whether a file is such a result.

    Raises:
        ValueError: if the file is something else.
        OSError: if nothing can be written to its folder.
    """
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or is_ours(path))):
        raise ValueError(
            f"{path} exists and is not {what}, so it is not replaced, with --overwrite neither. Choose another "
            "--output, or move it."
        )
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK):
        raise OSError(f"{path} cannot be written: {folder} is read-only for this user.")


def is_json_with(**types: type) -> Callable[[Path], bool]:
    """Test of a file for `check_file`: whether it is a JSON object with some keys, whose values have these types."""

    def test(path: Path) -> bool:
        try:
            found = read_json(path)
        except ValueError:
            return False
        return all(isinstance(found.get(key), kind) for key, kind in types.items())

    return test


def _check_unclaimed(folder: Path, files: Sequence[Path], what: str, overwrite: bool) -> None:
    """Refuse a folder without settings where something would have to be taken for results."""
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith((LOCK_NAME, LEDGER_NAME)))
    if files or (overwrite and there):
        raise ValueError(
            f"{folder} has no {SETTINGS_NAME}, so that what it holds ({shorten(there)}) is not known to be {what} of "
            "an earlier run, and is not replaced. Choose another --output"
            + (", or leave out --overwrite: other files may stand beside the results." if not files else ".")
        )


def shorten(names: Sequence[str], most: int = 5) -> str:
    """A list of names for a message, cut after some."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])
