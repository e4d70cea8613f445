"""Record of the files that runs wrote into a folder, by which they are known from those of others.

A line of the record, one JSON object with a name and a hash, is on disk before its file gets its name. So whenever a
run is killed, each of its files is listed. A file that was put there, exchanged or edited since by anybody else has
another hash: it is never taken for a result, and never removed.
"""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .atomic import naming, write_text
from .digest import file_digest
from .lock import LOCK_NAME

LEDGER_NAME = ".files.jsonl"


class Ledger:
    """The record of a folder.

    Args:
        folder: folder of results; it need not exist.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / LEDGER_NAME
        self._hashes: dict[str, set[str]] = {}
        self._torn = False
        content = self.path.read_bytes() if is_plain_file(self.path) else b""
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                self._hashes.setdefault(str(entry["file"]), set()).add(entry["sha256"])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # cut off by a crash, or of somebody else: what it lists is not known to be ours

    def exists(self) -> bool:
        """Look whether the folder has a record."""
        return is_plain_file(self.path)

    def add(self, name: str, sha256: str) -> None:
        """Record a file; call it when its content is on disk and before it gets its name."""
        line = "\n" * self._torn + _line(name, sha256)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            self._torn = True
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._torn = False
        self._hashes.setdefault(name, set()).add(sha256)

    def begin(self, names: Iterable[str] = ()) -> None:
        """Begin a new record, of some files that are there."""
        self._hashes = {name: {file_digest(self.folder / name)} for name in names}
        lines = [_line(name, sha256) for name, (sha256,) in self._hashes.items()]
        write_text(self.path, "".join(lines))
        self._torn = False

    def lists(self, name: str) -> bool:
        """Look whether a run wrote a file of this name."""
        return name in self._hashes

    def owns(self, name: str) -> bool:
        """Look whether the file of this name is there, and is what a run wrote."""
        path = self.folder / name
        return self.lists(name) and is_plain_file(path) and file_digest(path) in self._hashes[name]

    def all_names(self) -> list[str]:
        """Names of the listed files, those in folders below included, sorted."""
        return sorted(self._hashes)

    def names(self) -> list[str]:
        """Names of the listed files, sorted; those in folders below are left out."""
        return sorted(name for name in self._hashes if name == os.path.basename(name) and name not in ("", ".", ".."))


def record_folder(folder: Path) -> None:
    """Write the record of all files in a folder and the folders below it."""
    names = sorted(name for name, is_folder in _entries(folder) if not is_folder)
    Ledger(folder).begin(names)


def foreign_entries(folder: Path) -> list[str]:
    """Names of what stands in a folder, or below it, and is not as a run wrote it; sorted.

    Args:
        folder: folder that one run wrote as a whole, see `record_folder`.
    """
    ledger = Ledger(folder)
    parents = {str(parent) for name in ledger._hashes for parent in Path(name).parents}
    return sorted(
        name
        for name, is_folder in _entries(folder)
        if not (name in parents if is_folder else name in (LEDGER_NAME, LOCK_NAME) or ledger.owns(name))
    )


def is_plain_file(path: Path) -> bool:
    """Look whether a path is a file: no link, folder, pipe or device."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):  # a name from a damaged record may not be one
        return False


def _line(name: str, sha256: str) -> str:
    return json.dumps({"file": name, "sha256": sha256}) + "\n"


def _entries(folder: Path):
    """(name, whether it is a folder) of whatever stands in a folder and below it; links are not followed."""
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            yield path.relative_to(folder).as_posix(), name in folders and not path.is_symlink()
