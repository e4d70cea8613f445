"""The official JAX checkpoint: a msgpack file of flax, read without JAX or flax.

A training state is a map of `step`, `optimizer` (whose `target` are the raw weights), `lr`, `model_state`,
`ema_rate`, `params_ema` and `rng`. Arrays are extension type 1, `[shape, dtype, bytes]`; those above 1 GB are stored
in chunks. The file of the classifier holds nothing but the tree of parameters. There is no table of noise levels: the
network computes it from its configuration.

One of the four copies of the parameters is kept, the others are passed over. Whatever a file declares, what is read
and kept of it is bounded by its size (`_MAX_EXPANSION` for compressed files) and the number of its entries.
"""

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .checkpoint import OfficialCheckpoint, checked_decay, checked_name, checked_step, shown_names

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH, _MAX_DIMENSIONS = 16, 8
_MAX_MAP, _MAX_ENTRIES = 2**11, 2**17
# Weights hardly compress; a training state whose moments and averages are still zero comes to 2 or 3.
_MAX_EXPANSION, _FREE_BYTES = 16, 2**26


def load_jax_checkpoint(path: str | Path, use_ema: bool = True) -> OfficialCheckpoint:
    """Read a checkpoint of the official JAX code on the CPU.

    Args:
        path: the file, plain or gzip-compressed.
        use_ema: whether to take the moving average of the weights, which all published results use.

    Returns:
        The weights by their paths in the tree, such as `Conv_0/kernel`, in the layout of the file.

    Raises:
        ValueError: if the file is no such checkpoint or is damaged.
    """
    names: list[str] = []
    found: dict[str, Any] = {}
    with _unpacker(path) as unpacker:
        for key in _keys(unpacker):
            names.append(key)
            if key in ("step", "ema_rate"):
                found[key] = unpacker.unpack()
            elif key == "params_ema" and use_ema:
                found["parameters"] = _parameters(unpacker.unpack())
            elif key == "optimizer" and not use_ema:
                found["parameters"] = _target(unpacker)
            else:
                unpacker.skip()
        numbers = {key: _scalar(found.get(key)) for key in ("step", "ema_rate")}
    if "params_ema" not in names or "optimizer" not in names:
        raise ValueError(
            f"{path} holds {names[:8]}; a checkpoint of the official JAX code is a map of 'step', 'optimizer', "
            "'params_ema' and others. (That of the classifier is converted by `convert_classifier`.)"
        )
    if not found.get("parameters"):
        raise ValueError(f"{path} has no {'params_ema' if use_ema else 'optimizer.target'}; the file is damaged.")
    taken = ("step", "ema_rate", "params_ema" if use_ema else "optimizer")
    return OfficialCheckpoint(
        "jax",
        found["parameters"],
        checked_step(numbers["step"], path),
        checked_decay(numbers["ema_rate"], path),
        tuple(shown_names(name for name in names if name not in taken)),
    )


def load_jax_parameters(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file that holds a tree of parameters and nothing around it.

    Returns:
        The parameters by their paths, such as `Dense_0/kernel`, in the layout of the file.

    Raises:
        ValueError: if the file is damaged or holds other things than arrays.
    """
    parameters: dict[str, torch.Tensor] = {}
    with _unpacker(path) as unpacker:
        for key in _keys(unpacker):
            if key in ("step", "optimizer", "params_ema"):
                break
            for name, tensor in _parameters({key: unpacker.unpack()}).items():
                _put(parameters, name, tensor)
        else:
            return parameters
    raise ValueError(f"{path} is a training state, not parameters alone; `convert` reads it.")


# ---------------------------------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------------------------------


class _BoundedReader:
    """A file that ends the work once more was decompressed than weights can have been compressed from."""

    def __init__(self, file, limit: int):
        self._file = file
        self._left = limit

    def read(self, count: int) -> bytes:
        piece = self._file.read(count)
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(f"it expands to more than {_MAX_EXPANSION} times its size")
        return piece


@contextmanager
def _unpacker(path: str | Path) -> Iterator:
    """A `msgpack.Unpacker` of the file; whatever is found wrong inside the context is told with the file's name."""
    import msgpack

    limit = _FREE_BYTES + _MAX_EXPANSION * Path(path).stat().st_size
    with open(path, "rb") as plain:
        compressed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        file = gzip.GzipFile(fileobj=plain) if compressed else plain
        unpacker = msgpack.Unpacker(
            _BoundedReader(file, limit),
            read_size=2**20,
            max_buffer_size=min(limit, 2**31 - 1),
            object_pairs_hook=_counted_map(),
            max_map_len=_MAX_MAP,
            max_array_len=0,
            max_bin_len=0,
            max_str_len=2**10,
        )
        try:
            yield unpacker
        except msgpack.OutOfData as error:
            raise _damaged(path, "it ends in the middle of a value") from error
        except msgpack.FormatError as error:
            raise _damaged(path, "a byte has no meaning there") from error
        except msgpack.StackError as error:
            raise _damaged(path, "its values are nested too deep") from error
        except msgpack.BufferFull as error:
            raise _damaged(path, "a value is longer than any that such a file holds") from error
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: str | Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged or no JAX checkpoint ({reason}). If it was downloaded, look whether it is complete."
    )


def _counted_map() -> Callable[[list[tuple]], dict]:
    """Builder of dictionaries from pairs that refuses repeated names, and more entries than a network has."""
    count = 0

    def build(pairs: list[tuple]) -> dict:
        nonlocal count
        count += len(pairs) + 1
        if count > _MAX_ENTRIES:
            raise ValueError(f"it has more than {_MAX_ENTRIES} entries")
        result: dict = {}
        for key, value in pairs:
            _put(result, checked_name(key, "a map"), value)
        return result

    return build


def _keys(unpacker) -> Iterator[str]:
    """Keys of the map that comes next; the value must be taken before the next key is asked for."""
    try:
        size = unpacker.read_map_header()
    except ValueError as error:
        raise ValueError("a map was expected") from error
    for _ in range(size):
        yield checked_name(unpacker.unpack(), "a map")


def _target(unpacker) -> dict[str, torch.Tensor]:
    parameters: dict[str, torch.Tensor] = {}
    for key in _keys(unpacker):
        if key == "target":
            parameters = _parameters(unpacker.unpack())
        else:
            unpacker.skip()
    return parameters


# ---------------------------------------------------------------------------------------------------------------------
# The tree
# ---------------------------------------------------------------------------------------------------------------------


def _parameters(tree) -> dict[str, torch.Tensor]:
    """The arrays of a nested map, which is emptied, by their paths, names joined by slashes."""
    parameters: dict[str, torch.Tensor] = {}
    if not isinstance(tree, dict):
        raise ValueError("a tree of parameters was expected")
    _collect(tree, "", parameters, _MAX_DEPTH)
    return parameters


def _collect(tree: dict, prefix: str, parameters: dict[str, torch.Tensor], depth: int) -> None:
    if depth == 0:
        raise ValueError(f"maps are nested {_MAX_DEPTH} deep")
    for key in list(tree):
        value, name = tree.pop(key), prefix + key
        if not isinstance(value, dict):
            _put(parameters, name, _tensor(value))
        elif _CHUNKED in value:
            _put(parameters, name, _joined(value))
        else:
            _collect(value, f"{name}/", parameters, depth - 1)


def _put(mapping: dict, name: str, value) -> None:
    if name in mapping:
        raise ValueError(f"{name!r:.80} stands twice in it")
    mapping[name] = value


def _joined(value: dict) -> torch.Tensor:
    """An array that is stored in chunks."""
    try:
        shape = tuple(value["shape"][str(i)] for i in range(len(value["shape"])))
        pieces = [_tensor(value["chunks"][str(i)]).flatten() for i in range(len(value["chunks"]))]
        return torch.cat(pieces).reshape(shape)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"an array in chunks does not fit together ({error!r:.80})") from error


def _tensor(value) -> torch.Tensor:
    """An array or scalar of numpy as a tensor."""
    import msgpack

    if not isinstance(value, msgpack.ExtType) or value.code not in (_ARRAY, _SCALAR):
        raise ValueError(f"an array was expected, not {_kind(value)}")
    try:
        shape, dtype, content = msgpack.unpackb(value.data, max_array_len=_MAX_DIMENSIONS, max_map_len=0)
        shape, dtype = tuple(shape), _DTYPES[dtype]
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("its shape is no list of whole numbers")
        fits = len(content) == math.prod(shape) * dtype.itemsize
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise ValueError(f"an array cannot be decoded ({error!r:.80})") from error
    if not fits or not content:
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


def _kind(value) -> str:
    """The type of a value, which may be too long to be shown."""
    return f"a value of type {type(value).__name__}"


def _scalar(value):
    """A number as it is, or out of an array or scalar of numpy."""
    import msgpack

    return _tensor(value) if isinstance(value, msgpack.ExtType) else value
