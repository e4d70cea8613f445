"""Which files of a folder are its pictures."""

import logging
import os
import stat
from pathlib import Path

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")

logger = logging.getLogger(__name__)


def picture_files(folder: str | Path) -> list[Path]:
    """The picture files of a folder and of those below it, sorted.

    Hidden files and folders (`._photo.png`, `.cache`) are left out, without a word; what has a picture's name and is
    no file (a pipe, a link to nothing or to itself), with a warning.

    Raises:
        OSError: if a folder may not be read.
    """
    found, skipped = [], []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in PICTURE_SUFFIXES:
                continue
            (found if _is_file(path) else skipped).append(path)
    if skipped:
        shown = ", ".join(map(str, sorted(skipped)[:5]))
        logger.warning("%d of %s are no files and are skipped: %s", len(skipped), folder, shown)
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
