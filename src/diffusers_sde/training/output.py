"""The output folder of a run: its record, by which files of a training run are known from those of others.

Only files that the record lists, and that are as a run wrote them, are ever replaced or removed.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..store import LEDGER_NAME, Ledger, file_digest, replace_folder, replacement, restore_folder
from . import checkpoints, history

SAMPLES = "samples"
_GRID = re.compile(r"step-(\d+)\.png")


class OutputFolder:
    """The files of one training run, in its main process, which holds the folder's lock.

    Args:
        folder: `--output_dir`.
        results: names of the files and folders that a run of this kind writes at its end.
    """

    def __init__(self, folder: Path, results: tuple[str, ...]):
        self.folder = folder
        self.ledger = Ledger(folder)
        self.results = results

    def check(self, anew: bool) -> None:
        """Refuse to begin where a file of somebody else stands in the way.

        Args:
            anew: whether the files of the earlier run are to be removed.

        Raises:
            ValueError: naming them.
        """
        for name in self.results:
            restore_folder(self.folder / name)
        foreign = self._foreign_results()
        if anew:
            for path in checkpoints.list_checkpoints(self.folder):
                foreign += [f"{path.name}/{name}" for name in checkpoints.foreign_files(path, self.ledger)]
        if foreign:
            more = f" and {len(foreign) - 8} more" if len(foreign) > 8 else ""
            raise ValueError(
                f"--output_dir {self.folder} holds {', '.join(foreign[:8])}{more}, where this run writes its own, and "
                f"no training run is known to have written that as it is now (the record is {LEDGER_NAME}). Move it "
                "away, or choose another folder."
            )

    def has_results(self) -> bool:
        """Look whether an earlier run finished here."""
        return any((self.folder / name).exists() for name in self.results)

    def saved_before(self) -> bool:
        """Look whether a checkpoint was ever written here; one that a kill left without its name does not count."""
        listed = checkpoints.listed_checkpoints(self.ledger)
        named = [name for name in listed if not checkpoints.partial_of(self.folder / name).exists()]
        return bool(named or list(self.folder.glob("damaged-checkpoint-*")))

    def clear(self) -> None:
        """Remove checkpoints, grids and history of the earlier run; its result stays until the new one is there."""
        for path in checkpoints.list_checkpoints(self.folder):
            checkpoints.remove(path)
        for name in [*self.grids(), history.NAME]:
            (self.folder / name).unlink(missing_ok=True)
        kept = [f for name in self.results for f in _files(self.folder, name) if self.ledger.owns(f)]
        self.ledger.begin(kept)

    def grids(self) -> list[str]:
        """Names of the sample grids that are there, by rising step."""
        folder = self.folder / SAMPLES
        found = [path.name for path in folder.iterdir() if _GRID.fullmatch(path.name)] if folder.is_dir() else []
        return [f"{SAMPLES}/{name}" for name in sorted(found, key=lambda name: int(_GRID.fullmatch(name).group(1)))]

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Path to write a file to, which gets its name, and is recorded, when the block ends without an error."""
        self._check_place(name)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacement(path, before=lambda partial: self.ledger.add(name, file_digest(partial))) as partial:
            yield partial

    def place(self, new: Path) -> None:
        """Move what stands in the folder `new` to the output folder, each part complete or as before."""
        for entry in sorted(new.iterdir()):
            self._check_place(entry.name)
            for name in _files(new, entry.name):
                self.ledger.add(name, file_digest(new / name))
            if entry.is_dir():
                replace_folder(entry, self.folder / entry.name)
            else:
                entry.replace(self.folder / entry.name)

    def _check_place(self, name: str) -> None:
        foreign = self._foreign(name)
        if foreign:
            raise ValueError(
                f"{', '.join(str(self.folder / f) for f in foreign[:8])} is not as this run wrote it, "
                "and is left as it is. Move it away, and go on by --resume_from_checkpoint latest."
            )

    def _foreign_results(self) -> list[str]:
        foreign = [f for name in [*self.results, *self.grids()] for f in self._foreign(name)]
        if (self.folder / SAMPLES).exists() and not (self.folder / SAMPLES).is_dir():
            foreign.append(SAMPLES)
        if os.path.lexists(self.folder / history.NAME) and not self.ledger.lists(history.NAME):
            foreign.append(history.NAME)
        return foreign

    def _foreign(self, name: str) -> list[str]:
        """What stands under a name and is not as a run wrote it: the file, or files and folders in the folder."""
        path = self.folder / name
        if not os.path.lexists(path):
            return []
        if path.is_symlink() or not path.is_dir():
            return [] if self.ledger.owns(name) else [name]
        foreign = [f for f in _files(self.folder, name) if not self.ledger.owns(f)]
        empty = [Path(root) for root, folders, files in os.walk(path) if not folders and not files]
        return foreign + [f"{entry.relative_to(self.folder).as_posix()}/" for entry in empty]


def _files(root: Path, name: str) -> list[str]:
    """Names, relative to `root`, of a file or of all files and links in a folder."""
    path = root / name
    if path.is_symlink() or not path.is_dir():
        return [name] if os.path.lexists(path) else []
    found = []
    for folder, folders, files in os.walk(path):
        links = [f for f in folders if Path(folder, f).is_symlink()]
        found += [Path(folder, f).relative_to(root).as_posix() for f in [*files, *links]]
    return sorted(found)


def fresh_folder(path: Path) -> Path:
    """An empty folder in the place of what a killed run left."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
