"""One row of numbers per image of a data set: resumable, by any number of processes.

Image i draws its random numbers from (seed, i), so its row does not depend on batch or process. Process r of n takes
the images i with i mod n = r and appends rows to its own file; none waits for another. Whoever finds all rows written
puts the result together.
"""

import json
import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from ..pipelines.base import ScoreSdePipelineBase
from ..store import as_json, check_file, check_settings, claim, is_json_with, naming, read_json
from .provenance import model_settings, versions
from .shards import files_of


@dataclass
class RowEvaluation(ABC):
    """Rows in the making; a subclass says what is measured.

    Args:
        pipeline: whose network is measured.
        images: `images[i]` is uint8 of shape (C, H, W).
        output: JSON file of the result; rows are kept in the folder `output`.parts until then and after.
        num_images: the first images of the set that are measured; all if `None`.
        provenance: what else fixes the rows: model, data set, split, preparation.
        seed: of all random numbers.
        batch_size: images per evaluation of the network; it does not change the rows beyond rounding.
        process_index: r.
        num_processes: n.

    Raises:
        ValueError: if an argument is not allowed.
    """

    pipeline: ScoreSdePipelineBase
    images: object
    output: Path
    num_images: int | None = None
    provenance: dict = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 16
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self):
        if not 0 <= self.process_index < self.num_processes:
            raise ValueError(f"process {self.process_index} of {self.num_processes}: there is no such process.")
        if self.num_images is None:
            self.num_images = len(self.images)
        if not 1 <= self.num_images <= len(self.images):
            raise ValueError(f"num_images is {self.num_images}; the split has {len(self.images)} images.")
        self.output = Path(self.output)
        self.folder = self.output.with_name(f"{self.output.name}.parts")
        self._settings = self.settings()

    def settings(self) -> dict:
        """Everything that fixes a row, with versions, as JSON has it."""
        common = {"seed": self.seed, **model_settings(self.pipeline), "versions": versions()}
        return as_json({**self.provenance, **common, **self.own_settings()})

    @property
    def share(self) -> range:
        """Numbers of this process's images."""
        return range(self.process_index, self.num_images, self.num_processes)

    def claim(self, overwrite: bool = False) -> None:
        """Make the folder of rows this evaluation's own; see `store.claim`.

        Raises:
            ValueError: if it holds rows of other settings, unless they may be overwritten; if a file that the result
                will be written to is there and is not a result of this kind.
        """
        self._check_results(overwrite)
        claim(
            self.folder,
            self._settings,
            what="rows",
            marks=("versions", "weights_sha256"),
            results=self._parts,
            stems="rows-.*",
            overwrite=overwrite,
            num_processes=self.num_processes,
        )

    def run(self, on_progress=lambda done: None) -> dict | None:
        """Measure this process's missing images.

        Args:
            on_progress: called with the number of images of each batch that is done.

        Returns:
            The result if all images of all processes are measured, else `None`.
        """
        part = self.folder / f"rows-{self.process_index}-of-{self.num_processes}.jsonl"
        batches = [self.share[i : i + self.batch_size] for i in range(0, len(self.share), self.batch_size)]
        _mend(part, batches)
        done = self.rows()
        with naming(part), part.open("a", encoding="utf-8") as file:
            for batch in batches:
                missing = [index for index in batch if index not in done]
                if missing:
                    file.write("".join(json.dumps(row) + "\n" for row in self._measure(missing)))
                    file.flush()
                    os.fsync(file.fileno())
                on_progress(len(batch))
        return self.finish()

    def rows(self) -> dict[int, dict]:
        """The rows that are written, by index; a line that was cut off by a crash does not count."""
        found = {}
        for part in self._parts():
            for line in part.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    row = _read_row(line, part)
                    found.setdefault(row["index"], row)
        return found

    def _parts(self) -> list[Path]:
        return files_of(self.folder, r"rows-\d+-of-\d+\.jsonl")

    def _check_results(self, overwrite: bool) -> None:
        """Check that the result may be written where it belongs."""
        check_file(self.output, "a result of this kind", is_json_with(settings=dict, num_images=int))
        if self.output.is_file() and self.output.stat().st_size:
            found = read_json(self.output)["settings"]
            check_settings(found, self._settings, place=self.output, what="rows", overwrite=overwrite)

    def finish(self) -> dict | None:
        """Write the result if all rows are there, and return it; else `None`."""
        found = self.rows()
        if any(index not in found for index in range(self.num_images)):
            return None
        return self._write_result([found[index] for index in range(self.num_images)])

    @abstractmethod
    def own_settings(self) -> dict:
        """What else fixes a row of this kind."""

    @abstractmethod
    def _measure(self, indices: list[int]) -> list[dict]:
        """One row per image, with its number as "index"; no NaN and no infinity, which JSON lacks, see `plain`."""

    @abstractmethod
    def _write_result(self, rows: list[dict]) -> dict:
        """Write the result of all rows, in the order of their index, and return it."""


def mean_and_error(values: list[float | None]) -> dict:
    """Mean and its standard error of the values that are not `None`; `None` where there are too few."""
    values = [value for value in values if value is not None]
    count = len(values)
    mean = math.fsum(values) / count if values else None
    spread = math.fsum((value - mean) ** 2 for value in values)
    return {"mean": mean, "standard_error": math.sqrt(spread / (count * (count - 1))) if count > 1 else None}


def plain(value):
    """The value for JSON, which has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_row(line: bytes, part: Path) -> dict:
    try:
        row = json.loads(line)
        row["index"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{part} has a line that is not a row: {line[:40]!r}. Remove the line, or the file."
        ) from error
    return row


def _mend(part: Path, batches: list[range]) -> None:
    """Cut the lines of a last batch that a crash left incomplete, so that it is measured again as it was.

    Batches of the same images give the same numbers to the last bit.
    """
    if not part.is_file():
        return
    lines = part.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    written = [_read_row(line, part)["index"] for line in lines]
    last = next((batch for batch in batches if written and written[-1] in batch), None)
    if last is not None and written[-1] != last[-1]:
        while written and written[-1] in last:
            written.pop()
    with part.open("r+b") as file:
        file.truncate(sum(map(len, lines[: len(written)])))
