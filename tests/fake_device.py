"""A device without float64 on any machine: tensors that live on the CPU, report the device "meta", and refuse float64.

Apple's MPS refuses float64 tensors, and tensors of two devices do not mix. `FakeDevice` does the same: tensors made on
"meta" while it is active wrap real ones, so that all numbers are those of the CPU. Only an index, and a tensor of one
number, may come from the host.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")
_INDEXING = ("aten::index.Tensor", "aten::index_put", "aten::_index_put_impl_", "aten::index_put_")
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")


class FakeTensor(torch.Tensor):
    """A tensor of the fake device around the real one."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64: the fake device does not support float64.")
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=DEVICE, storage_offset=0
        )

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __repr__(self):
        return f"FakeTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class FakeDevice(TorchDispatchMode):
    """The device exists while this is active."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def unwrap(value):
    return value.inner if isinstance(value, FakeTensor) else value


def run(function, args, kwargs):
    name = function._schema.name + (f".{function._overloadname}" if function._overloadname != "default" else "")
    flat = [*torch.utils._pytree.tree_leaves(args), *torch.utils._pytree.tree_leaves(kwargs)]
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    fake = any(isinstance(value, FakeTensor) for value in tensors)
    device = kwargs.get("device")
    if device is not None:
        fake = torch.device(device) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif fake and not name.startswith(_INDEXING + _COPIES):
        hosts = [t for t in tensors if not isinstance(t, FakeTensor) and t.ndim > 0]
        if hosts:
            raise RuntimeError(f"{name}: expected all tensors on one device; {hosts[0].shape} is on the host.")
    if not fake and device is None:
        return function(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    inner_args, inner_kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    result = function(*inner_args, **inner_kwargs)
    if name.endswith("_") or function._schema.is_mutable:
        if isinstance(args[0], torch.Tensor) and isinstance(result, torch.Tensor):
            return args[0]
    if not fake:
        return result
    if name == "aten::copy_":
        return args[0]
    return tree_map(lambda value: FakeTensor(value) if isinstance(value, torch.Tensor) else value, result)


def to_device(x: torch.Tensor) -> torch.Tensor:
    return FakeTensor(x)


def move(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its parameters and buffers on the fake device."""
    for part in module.modules():
        for key, value in list(part._parameters.items()):
            if value is not None:
                part._parameters[key] = torch.nn.Parameter(FakeTensor(value.detach()), requires_grad=False)
        for key, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[key] = FakeTensor(value)
    return module
