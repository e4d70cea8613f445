"""A file of `torch.save`, zip archive or old-style pickle, read without executing anything and within its own size."""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from .checkpoint import is_zip, printable
from .pickle_scan import ForeignObjectError, PickleError, scan_pickle

_MAX_PICKLE = 2**26
_OLD_PICKLES = 5  # magic number, protocol, system, content, keys of the storages
_MAX_MEMBERS = 2**17
_PLAIN_FLAGS = 0x0808  # names in UTF-8; sizes after the member as well
# Beside its own error, `zipfile` has these for headers of other versions, names in no encoding, and cut members.
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, EOFError)
# The learning rate is a numpy scalar; nothing else is let in. Its function had another name before numpy 2.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_GLOBALS = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *(type(np.dtype(code)) for code in "?bhilqBHILQefd")),
]


def read_torch_file(path: str | Path):
    """The content of a file of `torch.save`, on the CPU.

    What the file declares is checked first, against itself and its size (see `scan_pickle`), and then left to
    `torch.load(weights_only=True)`; tensors of a zip archive are pages of the file.

    Raises:
        ValueError: if it holds other objects than tensors and numbers, or is damaged.
        OSError: if it cannot be opened or read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            archive = is_zip(file.read(4))
            file.seek(0)
            if archive:
                _check_archive(path)
            else:
                _check_old_file(file, path.stat().st_size)
        return _load(path, archive)
    except ForeignObjectError as error:
        advice = "Save the checkpoint again with dense tensors of float32 on the CPU."
        if not error.only_tensors:
            advice = (
                "Such objects could run code, so they are not loaded. If you trust the file, load it yourself and "
                "save its 'model', 'ema' and 'step' alone."
            )
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint of tensors and numbers: it holds {error}. {advice}"
        ) from error
    except (PickleError, *_ZIP_ERRORS) as error:
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint of tensors and numbers ({error}). If it was downloaded, "
            "look whether it is complete."
        ) from error


def _load(path: Path, archive: bool):
    try:
        with torch.serialization.safe_globals(_NUMPY_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols of damaged files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except OSError:
        raise
    except Exception as error:  # the reader of PyTorch has no error of its own for damage that the scan let pass
        # What PyTorch has to say on other ways to load the file stands before its reason.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or "no reason given"
        raise PickleError(f"{type(error).__name__}: {printable(reason.splitlines()[0])}") from error


def _check_archive(path: Path) -> None:
    """Check the members of a zip archive (names, sizes, check sums), which `torch.load` does not; then its pickle."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_members(members, path.stat().st_size)
        names = {member.filename.lower(): member for member in members}  # PyTorch does not tell cases apart
        if len(names) < len(members):
            raise PickleError("two members of the archive have the same name")
        root = next(iter(names), "").partition("/")[0]
        outside = [name for name in names if not name.startswith(f"{root}/") or ".." in name.split("/")]
        pickled = names.get(f"{root}/data.pkl")
        if outside or pickled is None:
            found = f"one named {outside[0]!r:.60}" if outside else "no data.pkl"
            raise PickleError(f"the archive has {found} where PyTorch has data.pkl and data/")
        damaged = archive.testzip()
        if damaged is not None:
            raise PickleError(f"the check sum of {damaged!r:.60} is wrong")
        if pickled.file_size > _MAX_PICKLE:
            raise PickleError(f"its description of the tensors has {pickled.file_size} bytes")

        def check_storage(key: str, size: int) -> None:
            member = names.get(f"{root}/data/{key}".lower())
            if member is None or size > member.file_size:
                raise PickleError(f"storage {key:.40} is declared with {size} bytes, which are not there")

        scan_pickle(io.BytesIO(archive.read(pickled)), check_storage)


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse members that are compressed or lie one over the other: they could be of any size."""
    if len(members) > _MAX_MEMBERS:
        raise PickleError(f"the archive has more than {_MAX_MEMBERS} members")
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ~_PLAIN_FLAGS for member in members):
        raise PickleError("PyTorch's archives are not compressed")
    if sum(member.file_size for member in members) > size:
        raise PickleError("the members of the archive are larger than the file")
    if not all(0 <= member.header_offset < size for member in members):
        raise PickleError("a member of the archive lies outside of the file")


def _check_old_file(file, size: int) -> None:
    """Check the pickles that an old-style file begins with; the numbers of all storages follow them."""
    total = 0

    def check_storage(key: str, declared: int) -> None:
        nonlocal total
        total += declared
        if total > size:
            raise PickleError("its tensors are declared larger than the file")

    head = io.BytesIO(file.read(_MAX_PICKLE))
    for _ in range(_OLD_PICKLES):
        scan_pickle(head, check_storage)
