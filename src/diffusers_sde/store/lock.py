"""One writer at a time in a folder of results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = ".lock"


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs; the operating system frees it when the process dies.

    Processes that share the work of one run take the lock in their main process alone.

    Args:
        folder: folder of results, made if it does not exist.

    Raises:
        ValueError: if another run holds the folder.
        OSError: if the folder cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"another run is writing to {folder}. Wait until it ends or stop it, or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()
