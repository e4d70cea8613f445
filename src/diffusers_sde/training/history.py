"""The curves of a run, one line of JSON per log entry, in `history.jsonl` of the output folder."""

import json
import math
from pathlib import Path

from ..store import write_text

NAME = "history.jsonl"


class History:
    """Appends to the file, and forgets what lies after the step from which a run goes on.

    Args:
        output_dir: of the run.
        step: optimiser steps taken before; entries of later steps are removed.
    """

    def __init__(self, output_dir: str | Path, step: int):
        self.path = Path(output_dir) / NAME
        kept = [entry for entry in read_history(output_dir) if entry["step"] <= step]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append one entry; what is not finite becomes null."""
        entry = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_history(output_dir: str | Path) -> list[dict]:
    """The entries by rising step; a line that a crash cut off does not count.

    Raises:
        ValueError: naming the file, if a line is no entry.
    """
    path = Path(output_dir) / NAME
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        if any(type(entry["step"]) is not int for entry in entries):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{path} has lines that no run wrote. Move it away, and start again.") from None
    return entries
