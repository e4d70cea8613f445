"""Python snippets and shell commands of a markdown page, in order, so that tests run what is printed.

A fenced block of `python` or `py` is a snippet; lines of an indented block, or of a fenced one of `bash`, that begin
with a known command are commands. A block behind `<!-- not run: REASON -->` is left out.
"""

import re
from dataclasses import dataclass
from pathlib import Path

COMMANDS = ("diffusers-sde", "accelerate", "torchrun", "python")
# Set-up that the page asks for once; the environment of the test is what it leads to.
SET_UP = ("make", "pip", "hf", ".venv/bin/pytest")


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    kind: str  # "python", "command" or "not run"
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(path: Path, root: Path) -> list[Snippet]:
    """All of one page."""
    page, lines = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8").split("\n")
    found, i, reason = [], 0, None
    while i < len(lines):
        start, line = i, lines[i]
        if marker := re.fullmatch(r"<!-- not run: (.+) -->", line):
            reason, i = marker[1], i + 1
            continue
        if line.startswith("```"):
            i = next(k for k in range(start + 1, len(lines)) if lines[k].startswith("```"))
            kind, block = line[3:].strip(), lines[start + 1 : i]
        elif line.startswith("    ") and not (start and lines[start - 1].strip()):
            while i + 1 < len(lines) and lines[i + 1].startswith("    "):
                i += 1
            kind, block = "indented", [text[4:] for text in lines[start : i + 1]]
        else:
            if line.strip():
                reason = None
            i += 1
            continue
        i += 1
        found += _of_block(page, start + 1, kind, block, reason)
        reason = None
    return found


def _of_block(page: str, line: int, kind: str, block: list[str], reason: str | None) -> list[Snippet]:
    if kind in ("python", "py"):
        texts = [(line + 1, "python", "\n".join(block) + "\n")]
    elif kind in ("bash", "sh", "indented"):
        joined = "\n".join(block).replace("\\\n", " ").split("\n")
        texts = [(line, "command", text) for text in joined if _first_word(text) in COMMANDS]
        unknown = [text for text in joined if kind != "indented" and _first_word(text) not in (*COMMANDS, *SET_UP, "")]
        assert not unknown, f"{page}:{line}: no known command: {unknown}"
    else:
        texts = []
    return [Snippet(page, n, "not run" if reason else what, reason or text) for n, what, text in texts]


def _first_word(text: str) -> str:
    words = text.split("#")[0].split()
    return words[0] if words and not text[0].isspace() else ""
