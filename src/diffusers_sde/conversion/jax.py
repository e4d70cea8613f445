"""The official JAX checkpoint: a msgpack file of flax, read without JAX or flax.

A training state is a map of `step`, `optimizer` (whose `target` are the raw weights), `lr`, `model_state`,
`ema_rate`, `params_ema` and `rng`. Arrays are extension type 1, `[shape, dtype, bytes]`; those above 1 GB are stored
in chunks. The file of the classifier holds nothing but the tree of parameters.
"""

import math
from pathlib import Path

import torch

from .checkpoint import OfficialCheckpoint
from .msgpack_stream import MsgpackStream

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
_MAX_DEPTH = 16


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
    found: dict = {}
    with MsgpackStream(path) as stream:
        names = []
        for key in stream.entries():
            names.append(key)
            if key in ("step", "ema_rate"):
                found[key] = _number(stream)
            elif key == "params_ema" and use_ema:
                found["parameters"] = _tree(stream)
            elif key == "optimizer" and not use_ema:
                found["parameters"] = _target(stream)
            else:
                stream.skip()
    if "params_ema" not in names or "optimizer" not in names:
        raise ValueError(
            f"{path} holds {names[:8]}; a checkpoint of the official JAX code is a map of 'step', 'optimizer', "
            "'params_ema' and others. (That of the classifier is converted by `convert_classifier`.)"
        )
    if not found.get("parameters"):
        raise ValueError(f"{path} has no {'params_ema' if use_ema else 'optimizer.target'}; the file is damaged.")
    step = found.get("step")
    return OfficialCheckpoint("jax", found["parameters"], None if step is None else int(step), found.get("ema_rate"))


def load_jax_parameters(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file that holds a tree of parameters and nothing around it.

    Returns:
        The parameters by their paths, such as `Dense_0/kernel`, in the layout of the file.

    Raises:
        ValueError: if the file is damaged or holds other things than arrays.
    """
    parameters: dict[str, torch.Tensor] = {}
    with MsgpackStream(path) as stream:
        for key in stream.entries():
            if key in ("step", "optimizer", "params_ema"):
                raise ValueError(f"{path} is a training state, not parameters alone; `convert` reads it.")
            _collect(stream, key, parameters, _MAX_DEPTH)
    return parameters


def _target(stream: MsgpackStream) -> dict[str, torch.Tensor] | None:
    parameters = None
    for key in stream.entries():
        if key == "target":
            parameters = _tree(stream)
        else:
            stream.skip()
    return parameters


def _tree(stream: MsgpackStream) -> dict[str, torch.Tensor]:
    """The arrays of a nested map by their paths, names joined by slashes."""
    parameters: dict[str, torch.Tensor] = {}
    _collect(stream, "", parameters, _MAX_DEPTH)
    return parameters


def _collect(stream: MsgpackStream, prefix: str, parameters: dict[str, torch.Tensor], depth: int) -> None:
    if depth == 0:
        raise stream.error(f"maps are nested {_MAX_DEPTH} deep")
    size = stream.map_size()
    if size is None:
        _put(stream, prefix, parameters, _tensor(stream, stream.value()))
        return
    for i in range(size):
        key = stream.value()
        if not isinstance(key, str):
            raise stream.error(f"a name was expected, not {key!r:.40}")
        if i == 0 and key == _CHUNKED:
            _put(stream, prefix, parameters, _chunked(stream, size))
            return
        _collect(stream, f"{prefix}/{key}" if prefix else key, parameters, depth - 1)


def _put(stream: MsgpackStream, name: str, parameters: dict[str, torch.Tensor], tensor: torch.Tensor) -> None:
    if not name or name in parameters:
        raise stream.error(
            f"the tree of parameters has {name!r} twice" if name else "a tree of parameters was expected"
        )
    parameters[name] = tensor


def _chunked(stream: MsgpackStream, size: int) -> torch.Tensor:
    """An array in chunks; the key that says so has been read, its value, `shape` and `chunks` follow."""
    stream.value()
    shape, chunks = None, {}
    for _ in range(size - 1):
        key = stream.value()
        if key == "shape":
            shape = stream.value()
        elif key == "chunks":
            chunks = {number: _tensor(stream, stream.value()) for number in stream.entries()}
        else:
            stream.skip()
    try:
        shape = tuple(shape[str(i)] for i in range(len(shape)))
        whole = torch.cat([chunks[str(i)].flatten() for i in range(len(chunks))])
        return whole.reshape(shape)
    except (KeyError, TypeError, RuntimeError) as error:
        raise stream.error(f"an array in chunks does not fit together ({error!r:.80})") from error


def _tensor(stream: MsgpackStream, value) -> torch.Tensor:
    """An array or scalar of numpy as a tensor."""
    import msgpack

    if not isinstance(value, msgpack.ExtType) or value.code not in (_ARRAY, _SCALAR):
        raise stream.error(f"an array was expected, not {value!r:.40}")
    try:
        shape, dtype, content = msgpack.unpackb(value.data)
        shape, dtype = tuple(shape), _DTYPES[dtype]
        fits = len(content) == math.prod(shape) * dtype.itemsize and all(n >= 0 for n in shape)
    except Exception as error:  # the decoder's own errors, and wrong types
        raise stream.error(f"an array cannot be decoded ({error!r:.80})") from error
    if not fits:
        raise stream.error(f"an array of shape {shape} has {len(content)} bytes")
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


def _number(stream: MsgpackStream) -> float:
    """A plain number, or an array or scalar of numpy with one element."""
    import msgpack

    value = stream.value()
    if isinstance(value, msgpack.ExtType):
        tensor = _tensor(stream, value)
        value = tensor.item() if tensor.numel() == 1 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise stream.error(f"a number was expected, not {value!r:.40}")
    return value
