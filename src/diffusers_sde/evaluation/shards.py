"""Tensors of many items in files of a fixed number of items: resumable, checked, filled by any number of processes.

Shard k holds the items k size, ..., (k + 1) size - 1 and is the work of process k mod n; none waits for another. A
shard appears when it is complete, with a digest of its numbers: one that is cut off or changed counts as missing and
is made again. Batches never cross the border of a shard, so that a shard is the same whoever makes it, and when.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..store import LOCK_NAME, as_json, claim, digest, is_plain_file, locked_folder, replacement, write_json

MANIFEST_NAME = "manifest.json"


class ShardFolder:
    """The items 0, ..., count - 1 in a folder of shards.

    Args:
        folder: created by `claim` if it does not exist.
        settings: what fixes the items, for JSON.
        count: number of items; more may be asked for later.
        shard_size: items of a shard, the last one excepted.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(self, folder: str | Path, settings: dict, count: int, shard_size: int):
        if count < 1 or shard_size < 1:
            raise ValueError(f"{count} items in shards of {shard_size} were asked for; both must be at least 1.")
        self.folder, self.count, self.shard_size = Path(folder), count, shard_size
        self.settings = as_json({**settings, "shard_size": shard_size})

    def __len__(self) -> int:
        return -(-self.count // self.shard_size)

    def items(self, shard: int) -> range:
        """Numbers of the items of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def path(self, shard: int) -> Path:
        """File of a shard."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def claim(self, overwrite: bool = False, num_processes: int = 1) -> None:
        """Make the folder the own one of these settings; see `store.claim`.

        Raises:
            ValueError: if it holds shards of other settings, unless they may be overwritten.
        """
        claim(
            self.folder,
            self.settings,
            what="shards",
            marks=("shard_size",),
            results=lambda: files_of(self.folder, rf"shard-\d{{5,}}\.safetensors|{re.escape(MANIFEST_NAME)}"),
            stems=r"shard-\d{5,}|manifest",
            overwrite=overwrite,
            num_processes=num_processes,
        )

    def read(self, shard: int) -> dict[str, torch.Tensor] | None:
        """The tensors of a shard; `None` if it is missing, damaged, or too short."""
        tensors, length = read_tensors(self.path(shard)), len(self.items(shard))
        if tensors is None or any(len(tensor) < length for tensor in tensors.values()):
            return None
        return {name: tensor[:length] for name, tensor in tensors.items()}

    def fill(
        self,
        make: Callable[[list[int]], dict[str, torch.Tensor]],
        batch_size: int,
        process_index: int = 0,
        num_processes: int = 1,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Make this process's missing shards.

        Args:
            make: `indices -> tensors`, with one entry per index each.
            batch_size: most items at once.
            process_index: of this process.
            num_processes: that share the shards.
            on_progress: called with the number of items of each shard that is there, or batch that is made.

        Raises:
            ValueError: if there is no such process.
        """
        for shard in self.share(process_index, num_processes):
            items = self.items(shard)
            if self.read(shard) is not None:
                on_progress(len(items))
                continue
            parts = []
            for start in range(0, len(items), batch_size):
                parts.append(make(list(items[start : start + batch_size])))
                on_progress(len(items[start : start + batch_size]))
            write_tensors(
                self.path(shard), {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
            )

    def share(self, process_index: int, num_processes: int) -> range:
        """Numbers of the shards of a process."""
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process {process_index} of {num_processes}: there is no such process.")
        return range(process_index, len(self), num_processes)

    def num_items(self, process_index: int, num_processes: int) -> int:
        """Number of items of a process's shards."""
        return sum(len(self.items(shard)) for shard in self.share(process_index, num_processes))

    def load(self, *names: str) -> dict[str, torch.Tensor] | None:
        """Some tensors of all items, or `None` if a shard is missing; writes a manifest if none is."""
        parts, listed = [], []
        for shard in range(len(self)):
            tensors = self.read(shard)
            if tensors is None:
                return None
            parts.append({name: tensors[name] for name in names})
            entry = {"file": self.path(shard).name, "items": len(self.items(shard)), "sha256": digest(tensors)}
            listed.append(entry)
        write_json(self.folder / MANIFEST_NAME, {"count": self.count, "settings": self.settings, "shards": listed})
        return {name: torch.cat([part[name] for part in parts]) for name in names}


def read_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """What `write_tensors` wrote; `None` if the file is missing or its content is not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            written = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return tensors if written == digest(tensors) else None


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors and their digest into a safetensors file that is complete or absent."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacement(path) as partial:
        save_file(tensors, partial, {"digest": digest(tensors)})


def files_of(folder: Path, names: str) -> list[Path]:
    """Files of a folder whose names match a regular expression, sorted."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if re.fullmatch(names, path.name) and is_plain_file(path)]


@contextmanager
def working_in(folder: Path, process_index: int = 0, num_processes: int = 1) -> Iterator[None]:
    """Keep the same process of another run out of a folder that the processes of one run share.

    The processes do not know of each other, so each has a lock of its own. Two runs of the same number of processes
    meet at each of these; two of other numbers do the same work twice, to the same result.

    Args:
        folder: folder of the results, made if it does not exist.
        process_index: number of this process.
        num_processes: number of processes that share the folder.

    Raises:
        ValueError: if another run holds the folder.
    """
    with locked_folder(folder, f"{LOCK_NAME}-{process_index}-of-{num_processes}"):
        yield
