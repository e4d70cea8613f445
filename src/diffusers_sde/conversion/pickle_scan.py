"""A pickle of tensors, looked through before `torch.load` builds anything of it.

`torch.load(weights_only=True)` executes nothing, but trusts what a file declares: storages of any size, tensors that
reach beyond them or repeat one number a billion times, containers that double with every entry. Here the opcodes run
on descriptions instead of objects: an item of the stack is the number of objects in it (shared ones counted every
time) and, where it matters, what it is. Time and memory are bounded by the number of opcodes.
"""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from .checkpoint import printable

MAX_OPCODES = 500_000
"""Opcodes of a pickle; the largest official networks, with the optimiser's state, take a quarter."""

_MAX_OBJECTS, _MAX_DIMENSIONS = 2**24, 64
_STORAGE = re.compile(r"torch(?:\.cuda)?\.(\w+)Storage")
_ITEM_SIZES = {
    **{"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "ComplexFloat": 8, "ComplexDouble": 16},
    **{"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1},
}
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_ENCODE, _DTYPE, _ORDERED = "_codecs.encode", "numpy.dtype", "collections.OrderedDict"
_ALLOWED = {
    *_TENSORS,
    *("torch._utils._rebuild_parameter", "torch.Size", "torch.device"),
    *(_ENCODE, _DTYPE, _ORDERED),
    # The learning rate is a numpy scalar, under this name before numpy 2 and since.
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
}
_NUMBER_TYPES = re.compile(r"[biuf][1248]")
_KINDS = {
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors on the meta device, which have no values",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_qtensor": "quantized tensors",
    "torch._utils._rebuild_tensor_v3": "tensors of float8 or another new type",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
}


class PickleError(ValueError):
    """Content that is damaged, or declares more than the file has."""


class ForeignObjectError(PickleError):
    """Content other than dense tensors and numbers.

    Args:
        names: full names of the classes and functions that would make it.
    """

    def __init__(self, names: set[str]):
        kinds = [f"{_KINDS[name]} ({name})" for name in sorted(names) if name in _KINDS]
        others = [printable(name) for name in sorted(names) if not (kinds and name.startswith("torch."))]
        super().__init__(", ".join([*kinds, *others][:8]) + (" and others" if len(kinds + others) > 8 else ""))
        self.only_tensors = not others


@dataclass(slots=True)
class _Item:
    """What stands for an object.

    Args:
        objects: number of objects in it, each counted as often as it is reached.
        value: the number, string or name of a global; a list of the items of a tuple; or a `_Storage`.
        made_by: name of the global that it was made by.
    """

    objects: int = 1
    value: Any = None
    made_by: str | None = None


@dataclass(frozen=True)
class _Storage:
    elements: int


def scan_pickle(file: BinaryIO, check_storage: Callable[[str, int], None]) -> None:
    """Check the next pickle of a file.

    Args:
        file: at the first byte of the pickle; it is left behind the last one.
        check_storage: called with the key and the bytes of every storage that is declared, to raise where there is no
            such storage.

    Raises:
        ForeignObjectError: naming all globals other than those of tensors and numbers.
        PickleError: if it is damaged, too large, or declares tensors that their storages do not hold.
    """
    machine = _Machine(check_storage)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_OPCODES:
                raise PickleError(f"its description of the tensors has more than {MAX_OPCODES} steps")
            machine.run(opcode, argument)
    except PickleError:
        raise
    except (ValueError, LookupError) as error:  # of genops, and of an empty stack
        raise PickleError(f"its description of the tensors is damaged: {error}") from error
    if machine.foreign:
        raise ForeignObjectError(machine.foreign)


class _Machine:
    """The stack, memo and marks of a pickle in work."""

    def __init__(self, check_storage: Callable[[str, int], None]):
        self.stack: list[_Item] = []
        self.below: list[list[_Item]] = []
        self.memo: dict[int, _Item] = {}
        self.objects = 0
        self.foreign: set[str] = set()
        self.storages: dict[str, tuple[int, _Storage]] = {}
        self.check_storage = check_storage

    def run(self, opcode: pickletools.OpcodeInfo, argument) -> None:
        """Do one step."""
        name = opcode.name
        if name in self._SPECIAL:
            self._SPECIAL[name](self, argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
            items = self._taken(opcode, keep=1)
            if name == "BUILD" and not self.foreign and self.stack[-1].made_by not in (_ORDERED, _DTYPE):
                raise PickleError("it sets the state of what has none")
            self._count(items)
            self.stack[-1].objects += sum(item.objects for item in items)
        elif opcode.stack_after:
            items = self._taken(opcode)
            is_tuple = name in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
            self._push(items, items if is_tuple else argument)
        else:
            self._taken(opcode)

    def _taken(self, opcode: pickletools.OpcodeInfo, keep: int = 0) -> list[_Item]:
        """What an opcode takes off the stack, but for the `keep` lowest ones."""
        if pickletools.markobject in opcode.stack_before:
            items, self.stack = self.stack, self.below.pop()
            return items
        count = len(opcode.stack_before) - keep
        if count > len(self.stack) - keep:
            raise IndexError("too few values")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _count(self, items: list[_Item]) -> None:
        self.objects += 1 + sum(item.objects for item in items)
        if self.objects > _MAX_OBJECTS:
            raise PickleError(f"its containers hold more than {_MAX_OBJECTS} objects")

    def _push(self, items: list[_Item], value=None, made_by: str | None = None) -> None:
        self._count(items)
        self.stack.append(_Item(1 + sum(item.objects for item in items), value, made_by))

    def _mark(self, argument) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _memoize(self, argument) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _global(self, argument: str) -> None:
        name = argument.replace(" ", ".")
        self._check_global(name)
        self._push([], name)

    def _stack_global(self, argument) -> None:
        module, name = (item.value for item in (self.stack.pop(-2), self.stack.pop()))
        self._check_global(f"{module}.{name}")
        self._push([], f"{module}.{name}")

    def _check_global(self, name: str) -> None:
        storage = _STORAGE.fullmatch(name)
        if name not in _ALLOWED and (storage is None or storage[1] not in _ITEM_SIZES):
            self.foreign.add(name)

    def _reduce(self, argument) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if self.foreign:  # which end the work, once all of them are known
            self._push([arguments], made_by="")
            return
        if not isinstance(arguments.value, list) or not isinstance(function.value, str):
            raise PickleError("it calls what is no function")
        values = [item.value for item in arguments.value]
        if function.value in _TENSORS:
            _check_tensor(values)
        elif function.value == _ENCODE and values[1:] not in (["latin1"], ["latin-1"]):
            raise PickleError("it encodes text otherwise than numpy does")
        elif function.value == _DTYPE and not (isinstance(values[0], str) and _NUMBER_TYPES.fullmatch(values[0])):
            raise PickleError("it has numpy values that are no numbers")
        self._push([arguments], made_by=function.value)

    def _binpersid(self, argument) -> None:
        item = self.stack.pop()
        if self.foreign:
            self._push([item])
            return
        values = [part.value for part in item.value] if isinstance(item.value, list) else []
        if len(values) < 5 or values[0] != "storage" or not _is_count(values[4]):
            raise PickleError("it refers to something else than stored numbers")
        kind, key, location, elements = values[1:5]
        if location == "meta":
            raise ForeignObjectError({"torch._utils._rebuild_meta_tensor_no_storage"})
        match = _STORAGE.fullmatch(kind) if isinstance(kind, str) else None
        if match is None or not isinstance(key, str):
            raise PickleError("a storage has no type or no name")
        size = elements * _ITEM_SIZES[match[1]]
        if key not in self.storages:
            self.check_storage(key, size)
            self.storages[key] = size, _Storage(elements)
        if self.storages[key][0] != size:
            raise PickleError(f"storage {key:.40} has two sizes")
        self._push([item], self.storages[key][1])

    _SPECIAL = {
        "MARK": _mark,
        "MEMOIZE": _memoize,
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        "REDUCE": _reduce,
        "NEWOBJ": _reduce,
        "BINPERSID": _binpersid,
    }


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def _check_tensor(values: list) -> None:
    """Check that storage, offset, size and stride are those of a tensor that has its own numbers."""
    if len(values) < 4 or not isinstance(values[0], _Storage) or not all(isinstance(v, list) for v in values[2:4]):
        raise PickleError("a tensor is not described as such")
    storage, offset = values[:2]
    size, stride = ([item.value for item in items] for items in values[2:4])
    if not len(size) == len(stride) <= _MAX_DIMENSIONS or not all(map(_is_count, (offset, *size, *stride))):
        raise PickleError("a tensor has no whole numbers for its shape")
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if elements and (last >= storage.elements or elements > storage.elements):
        raise PickleError(f"a tensor of {elements} numbers is declared over {storage.elements} stored ones")
