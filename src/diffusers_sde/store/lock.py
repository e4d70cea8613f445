"""One writer at a time in a folder of results, or at a file."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_NAME = ".lock"
_HELD: set[Path] = set()


@contextmanager
def locked_folder(folder: str | Path, name: str = LOCK_NAME, wait: float = 0.0) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs; the operating system frees it when the process dies.

    Processes that share the work of one run take the lock in their main process alone, or one of a name for each.

    Args:
        folder: folder of results, made if it does not exist.
        name: name of the lock, which begins with `LOCK_NAME`.
        wait: seconds to wait for another run to let go.

    Raises:
        ValueError: if another run holds the folder.
        OSError: if the folder cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / name, folder, wait):
        yield


@contextmanager
def locked_file(path: str | Path) -> Iterator[None]:
    """Keep other runs away from one file or from a folder that is replaced as a whole; see `locked_folder`.

    Args:
        path: what is written. The lock stands beside it under a hidden name, in a folder that is made if need be.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}{LOCK_NAME}"), path, 0.0):
        yield


def others_in(folder: Path) -> bool:
    """Look whether another run holds a lock of any name in a folder."""
    for path in folder.glob(f"{LOCK_NAME}*"):
        if path.resolve() not in _HELD:
            try:
                with _locked(path, folder, 0.0):
                    pass
            except ValueError:
                return True
    return False


@contextmanager
def _locked(path: Path, place: Path, wait: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait, poll_interval=0.02)
    except Timeout:
        raise ValueError(
            f"another run is writing to {place}. Wait until it ends or stop it, or choose another place."
        ) from None
    except OSError as error:
        raise OSError(f"{place} cannot be written to: {error.strerror or error}.") from error
    key = path.resolve()
    _HELD.add(key)
    try:
        yield
    finally:
        _HELD.discard(key)
        try:
            with suppress(OSError):
                path.unlink()  # while it is held: who opened it before finds it gone, and opens a new one
        finally:
            lock.release()
