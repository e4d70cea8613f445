"""Damaged and hostile checkpoints of both formats, each converted within limits of time and memory.

    python tests/conversion/hostile_checkpoints.py --random 300

One process converts all of them and prints a line of JSON for each: what came out, seconds, and by how much the peak
of its memory rose. Every file must load or be refused with a `ValueError` that names it; none may run anything.
"""

import argparse
import gzip
import io
import itertools
import json
import math
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgpack
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this runs as a script
from checkpoints import checkpoint_bytes, checkpoint_content, description

MAX_SECONDS = 20
_ADDRESS_SPACE = 3 * 2**30  # beyond what the imports take
TORCH, JAX = "ve_ncsnpp_discrete", "jax_y_residual_out_fir"
Case = tuple[str, Callable[[], bytes]]


def saved(content, new_format: bool = True, **options) -> bytes:
    """The bytes that `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new_format, **options)
    return buffer.getvalue()


def archive(pickled: bytes, others=(), compression=zipfile.ZIP_STORED) -> bytes:
    """A zip archive as PyTorch's, with this pickle and other members (name, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about members of the same name
        for name, content in (("archive/data.pkl", pickled), ("archive/version", b"3\n"), *others):
            file.writestr(name, content)
    return buffer.getvalue()


def old_file(pickled: bytes, rest: bytes = b"") -> bytes:
    """An old-style file with this pickle as its content."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2) + rest


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------------------------

PUT, GET, MARK = pickle.BINPUT, pickle.BINGET, pickle.MARK


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    if abs(value) < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(content)]) + content


def numbers(values) -> bytes:
    return MARK + b"".join(map(number, values)) + pickle.TUPLE


def called(function: str, *arguments: bytes) -> bytes:
    module, _, name = function.rpartition(".")
    return b"c" + f"{module}\n{name}\n".encode() + MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def storage(elements: int, location: str = "cpu", key: str = "0", kind: str = "torch.FloatStorage") -> bytes:
    module, _, name = kind.rpartition(".")
    parts = (text("storage"), b"c" + f"{module}\n{name}\n".encode(), text(key), text(location), number(elements))
    return MARK + b"".join(parts) + pickle.TUPLE + pickle.BINPERSID


def tensor(stored: bytes, offset: int, size, stride) -> bytes:
    hooks = called("collections.OrderedDict")
    parts = (stored, number(offset), numbers(size), numbers(stride), pickle.NEWFALSE, hooks)
    return called("torch._utils._rebuild_tensor_v2", *parts)


def model(value: bytes) -> bytes:
    """The pickle of {"model": {"a": value}}."""
    inner = b"}" + text("a") + value + pickle.SETITEM
    return b"\x80\x02}" + text("model") + inner + pickle.SETITEM + b"."


def doubling(step: bytes, start: bytes, depth: int = 100) -> bytes:
    """A container that holds the one before twice, again and again."""
    return start + PUT + b"\x00" + depth * (pickle.MARK + 2 * (GET + b"\x00") + step + PUT + b"\x00")


def pickles() -> Iterator[tuple[str, bytes]]:
    """Pickles by hand; each goes into an archive with 40 bytes of numbers, and into an old-style file."""
    laughs = doubling(pickle.TUPLE, text("ha"))
    key = b"\x80\x02}" + laughs + pickle.NONE + pickle.SETITEM + b"."
    yield "doubling tuples as a key", key
    yield "doubling tuples", model(laughs)
    yield "doubling lists", model(doubling(pickle.LIST, b"]"))
    appended = 2 * (GET + b"\x00" + pickle.APPEND) + PUT + b"\x00"
    yield "doubling, appended", model(b"]" + PUT + b"\x00" + 60 * (pickle.EMPTY_LIST + appended))
    yield "a list in itself", model(b"]" + PUT + b"\x00" + GET + b"\x00" + b"a")
    yield "lists nested deep", model(b"]" * 200_000 + b"a" * 199_999)
    yield "tuples nested deep", model(b")" + pickle.TUPLE1 * 200_000)
    yield "a key nested deep", b"\x80\x02}" + b")" + pickle.TUPLE1 * 200_000 + pickle.NONE + pickle.SETITEM + b"."
    yield "marks nested deep", model(MARK * 300_000 + pickle.TUPLE * 300_000)
    yield "millions of values", model(b"](" + b"N" * 3_000_000 + b"e")
    yield "a long string", model(text("x" * 10**7))
    yield "no stop", model(b"N")[:-1]
    yield "an empty stack", b"\x80\x02."
    yield "an unknown memo", model(GET + b"\x07")
    yield "bytearray of 20 GB", model(called("builtins.bytearray", number(2 * 10**10)))
    yield "tensor of 40 GB", model(called("torch.FloatTensor", number(10**5), number(10**5)))
    yield "Tensor made by its class", model(called("torch.Tensor", number(10**5), number(10**5)))
    yield "a slow encoding", model(called("_codecs.encode", text("\u00fc" * 300_000), text("punycode")))
    yield "objects of numpy", model(called("numpy.dtype", text("O8"), pickle.NEWFALSE, pickle.NEWTRUE))
    yield "a wide numpy type", model(called("numpy.dtype", text("V2000000000"), pickle.NEWFALSE, pickle.NEWTRUE))
    state = MARK + storage(10) + numbers([0, 5, 1]) + pickle.TUPLE
    yield "a tensor's state set", model(tensor(storage(10), 0, [10], [1]) + state + pickle.BUILD)
    yield "storage on the meta device", model(tensor(storage(10, "meta"), 0, [10], [1]))
    yield "storage of 40 TB", model(tensor(storage(10**13), 0, [10**13], [1]))
    yield "storage of 2^2000 bytes", model(tensor(storage(2**2000), 0, [2**2000], [1]))
    yield "storage of -1 bytes", model(tensor(storage(-1), 0, [1], [1]))
    yield "storage with two sizes", model(tensor(storage(2), 0, [2], [1]) + b"0" + tensor(storage(10), 0, [10], [1]))
    yield "storage of another type", model(tensor(storage(10, kind="torch.storage.UntypedStorage"), 0, [10], [1]))
    yield "storage that is missing", model(tensor(storage(10, key="7"), 0, [10], [1]))
    yield "storage outside of the archive", model(tensor(storage(10, key="../../../etc/passwd"), 0, [10], [1]))
    yield "numbers behind the storage", model(tensor(storage(10), 5, [10], [1]))
    yield "numbers before the storage", model(tensor(storage(10), -5, [10], [1]))
    yield "strides out of the storage", model(tensor(storage(10), 0, [3, 3], [1000, 1]))
    yield "negative strides", model(tensor(storage(10), 9, [10], [-1]))
    yield "negative size", model(tensor(storage(10), 0, [-10], [1]))
    yield "a number a billion times", model(tensor(storage(10), 0, [10**9], [0]))
    yield "a thousand dimensions", model(tensor(storage(10), 0, [2**2000] * 1000, [0] * 1000))
    yield "an empty tensor of odd shape", model(tensor(storage(10), 0, [0, 2**62], [2**62, 1]))


def canaries() -> Iterator[tuple[str, bytes]]:
    """Pickles that write into the folder in `HOSTILE_CANARY`, if anything runs them."""
    target = os.path.join(os.environ["HOSTILE_CANARY"], "written")

    class Call:
        def __init__(self, function, *arguments):
            self.call = function, arguments

        def __reduce__(self):
            return self.call

    calls = [Call(open, target, "w"), Call(os.system, f"touch {target}"), Call(eval, f"open({target!r}, 'w')")]
    for protocol in (2, 4):
        for call in calls:
            content = {"model": {"a": torch.ones(2)}, "ema": call}
            yield f"{call.call[0].__name__}, protocol {protocol}", pickle.dumps(content["ema"], protocol)
    for call in calls:
        yield f"{call.call[0].__name__} in a checkpoint", saved({"model": {"a": torch.ones(2)}, "ema": call})
        yield f"{call.call[0].__name__} in an old one", saved({"model": {}, "ema": call}, new_format=False)


def odd_tensors() -> Iterator[tuple[str, dict]]:
    """Checkpoints with weights that are none, written by `torch.save`."""
    content = checkpoint_content(TORCH)
    first = next(iter(content["model"].items()))
    shape = content["ema"]["shadow_params"][0].shape
    shared = torch.randn(20_000)
    tensors = {
        "meta": torch.ones(shape, device="meta"),
        "float8": torch.ones(shape).to(torch.float8_e5m2),
        "uint16": torch.ones(shape).to(torch.uint16),
        "complex": torch.ones(shape, dtype=torch.complex128),
        "bool": torch.ones(shape, dtype=torch.bool),
        "int": torch.ones(shape, dtype=torch.int64),
        "sparse": torch.ones(shape).to_sparse(),
        "expanded": torch.ones(1).expand(shape),
        "infinite": torch.full(shape, torch.inf),
    }
    for name, value in tensors.items():
        yield f"{name} weights", content | {"ema": {"shadow_params": [value, *content["ema"]["shadow_params"][1:]]}}
    yield "shared numbers", {"model": {str(i): shared[: 20_000 - i] for i in range(5000)}, "ema": None}
    yield "keys that are no names", {"model": dict.fromkeys(range(5), first[1]), ("a",) * 9: 1, None: 2}
    for value in (math.inf, math.nan, -1, 10**600, "x" * 10**6, [[]], {}, torch.ones(9), torch.tensor(math.inf), True):
        yield f"step of {type(value).__name__}", content | {"step": value}
        yield f"decay of {type(value).__name__}", content | {"ema": content["ema"] | {"decay": value}}


def archives() -> Iterator[tuple[str, bytes]]:
    """Zip archives that are not as PyTorch writes them."""
    good = model(tensor(storage(10), 0, [10], [1]))
    data = ("archive/data/0", bytes(40))
    yield "two pickles", archive(good, [("archive/data.pkl", b"\x80\x02N."), data])
    yield "two pickles, another case", archive(good, [("archive/DATA.PKL", b"\x80\x02N."), data])
    for name in ("../../escaped", "/absolute", "other/data.pkl", "archive/../x", "archive/data/../../../x"):
        yield f"member {name}", archive(good, [data, (name, b"x")])
    yield "compressed", archive(good, [("archive/data/0", bytes(10**8))], zipfile.ZIP_DEFLATED)
    yield "compressed pickle", archive(model(text("x" * 10**8)), [data], zipfile.ZIP_DEFLATED)
    yield "nothing in it", zipfile_of([])
    yield "no pickle", zipfile_of([data])
    yield "empty pickle", archive(b"", [data])
    yield "thousands of members", archive(good, [data, *((f"archive/data/{i}", b"") for i in range(1, 20_000))])
    whole = archive(good, [("archive/data/0", bytes(10**6))])
    yield "members one over the other", overlapping(whole, 3000)
    yield "script module", archive(good, [data, ("archive/constants.pkl", b"\x80\x02N.")])
    yield "other byte order", archive(good, [data, ("archive/byteorder", b"big")])
    yield "unknown byte order", archive(good, [data, ("archive/byteorder", b"\xff" * 1000)])
    yield "a pickle with an archive behind", old_file(good) + whole
    for flags in (1, 0x20, 0x40):
        entry = b"PK\x01\x02\x14\x03\x14\x00"
        yield f"flags {flags}", whole.replace(entry + b"\0\0", entry + struct.pack("<H", flags))


def zipfile_of(members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for member in members:
            file.writestr(*member)
    return buffer.getvalue()


def overlapping(content: bytes, times: int) -> bytes:
    """The archive with many entries in its directory for its largest member."""
    end = content.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", content[end + 16 : end + 20])[0]
    directory = content[start:end]
    place = directory.index(b"archive/data/0") - 46
    entry = directory[place : place + 46 + len(b"archive/data/0")]
    names = (entry.replace(b"archive/data/0", f"archive/d{i:05}".encode()[:14].ljust(14, b"_")) for i in range(times))
    directory += b"".join(names)
    count = struct.pack("<HH", *2 * [min(times + 3, 65535)])
    return content[:start] + directory + b"PK\x05\x06\0\0\0\0" + count + struct.pack("<IIH", len(directory), start, 0)


# ---------------------------------------------------------------------------------------------------------------------
# JAX
# ---------------------------------------------------------------------------------------------------------------------


def state(tree: bytes, step: bytes = b"\x01") -> bytes:
    """A training state whose averaged parameters are `tree`."""
    names = [msgpack.packb(name) for name in ("step", "optimizer", "params_ema")]
    return b"\x83" + names[0] + step + names[1] + b"\x80" + names[2] + tree


def array(shape, dtype: str = "float32", content: bytes = b"") -> bytes:
    return msgpack.packb(msgpack.ExtType(1, msgpack.packb([shape, dtype, content])))


def bomb(head: bytes, megabytes: int) -> bytes:
    """Gzip streams, one after the other, of `head` and then zeros."""
    return gzip.compress(head) + gzip.compress(bytes(2**24), 9) * (megabytes // 16)


def messages() -> Iterator[tuple[str, bytes]]:
    """msgpack files by hand."""
    one, ext = b"\x81" + msgpack.packb("a"), b"\xc9\x7f\xff\xff\xf0\x01"
    yield "gzip bomb in a value that is kept", bomb(state(one + ext), 2048)
    yield "gzip bomb in a value that is not kept", bomb(b"\x83" + msgpack.packb("lr") + ext, 2048)
    yield "gzip bomb of empty maps", bomb(state(one + b"\xdd\x7f\xff\xff\xff"), 256)
    yield "gzip in gzip", gzip.compress(gzip.compress(checkpoint_bytes(JAX)))
    yield "maps nested deep", state((one * 100_000) + b"\xc0")
    yield "maps nested, kept", state((one * 500) + array([1], content=bytes(4)))
    yield "arrays nested deep, not kept", b"\x83" + msgpack.packb("lr") + b"\x91" * 100_000
    yield "millions of empty maps", state(b"\x81\xa1a\xdd\x00\x98\x96\x80" + b"\x80" * 10**7)
    maps = b"".join(b"\xa4" + f"{i:04}".encode() + b"\x80" for i in range(2000))
    nested = b"".join(b"\xa4" + f"{i:04}".encode() + b"\xde\x07\xd0" + maps for i in range(500))
    yield "maps of thousands of maps", state(b"\xde\x07\xd0" + nested)
    many = b"\xdd\x01\x31\x2d\x00" + b"\xc0" * 20_000_000
    yield "millions of values, not kept", b"\x83" + msgpack.packb("lr") + many
    yield "a map of four billion", b"\xdf\xff\xff\xff\xff" + msgpack.packb("step")
    yield "a name twice", state(b"\x82" + 2 * (msgpack.packb("a") + array([1], content=bytes(4))))
    yield "a slash in a name", state(b"\x82" + msgpack.packb("a/b") + array([1], content=bytes(4)) + one + one)
    yield "a name of another type", state(b"\x81" + array([1], content=bytes(4)) + b"\xc0")
    yield "a name that is no text", state(b"\x81\xa2\xff\xfe\x00")
    for step in (math.inf, math.nan, -1, 2.5, 2**64 - 1, "many", None, [1], {}):
        yield f"step {step}", state(one + array([1], content=bytes(4)), msgpack.packb(step))
    for shape, dtype in (
        ([-1, -1], "float32"), ([2**62, 4], "float32"), ([1.0], "float32"), (["1"], "float32"), ([[1]], "float32"),
        ([1] * 200, "float32"), (1, "float32"), ([1], "object"), ([1], "complex64"), ([1], 7), ([True], "float32"),
        ([4], "uint8"), ([1], "int32"), ([0, 2**62], "float32"),
    ):  # fmt: skip
        yield f"array {shape!s:.30} of {dtype}", state(one + array(shape, dtype, bytes(4)))
    chunk = {"__msgpack_chunked_array__": True, "shape": {"0": -1}, "chunks": {"0": msgpack.ExtType(1, b"")}}
    for change in ({}, {"shape": [1]}, {"chunks": 5}, {"shape": {"1": 1}}, {"chunks": {}}, {"shape": {"0": "x"}}):
        yield f"chunks with {change}", state(one + msgpack.packb(chunk | change))


# ---------------------------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------------------------


def targeted() -> Iterator[Case]:
    """Cases that are meant to break something."""
    for name, content in pickles():
        yield f"archive: {name}", lambda content=content: archive(content, [("archive/data/0", bytes(40))])
        yield f"old file: {name}", lambda content=content: old_file(content, bytes(100))
    for name, content in (*canaries(), *archives(), *messages()):
        yield name, lambda content=content: content
    for name, content in odd_tensors():
        for new in (True, False):
            yield f"{name}, {'new' if new else 'old'}", lambda content=content, new=new: saved(content, new)


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One to three changes of bytes, half of them near the beginning or the end, where the structure is."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        if not data:
            break
        near = min(2000, len(data))
        place = draw.choice([draw.randrange(near), len(data) - 1 - draw.randrange(near), draw.randrange(len(data))])
        kind = draw.choice(["flip", "byte", "ones", "cut", "repeat", "truncate", "insert", "swap"])
        length = draw.randint(1, 100)
        if kind == "flip":
            data[place] ^= 1 << draw.randrange(8)
        elif kind == "byte":
            data[place] = draw.randrange(256)
        elif kind == "ones":
            data[place : place + 4] = b"\xff" * 4
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
        elif kind == "insert":
            data[place:place] = draw.randbytes(draw.randint(1, 8))
        elif kind == "swap":
            other = draw.randrange(len(data))
            data[place : place + length], data[other : other + length] = (
                data[other : other + length], data[place : place + length]
            )  # fmt: skip
        elif draw.random() < 0.5:
            del data[place:]
    return bytes(data)


def mutated_pickle(content: bytes, draw: random.Random) -> bytes:
    """An archive with a changed pickle under a right check sum."""
    old, buffer = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, mutate(data, draw) if member.filename.endswith(".pkl") else data)
    return buffer.getvalue()


def mutated(count: int, seed: int) -> Iterator[Case]:
    """Random changes of whole checkpoints of every kind in turn."""
    content = checkpoint_content(TORCH)
    originals = [
        ("archive", saved(content), mutate),
        ("pickle", saved(content), mutated_pickle),
        ("old file", saved(content, new_format=False), mutate),
        ("msgpack", checkpoint_bytes(JAX), mutate),
        ("gzip", gzip.compress(checkpoint_bytes(JAX), 1), mutate),
        ("classifier", checkpoint_bytes("jax_classifier"), mutate),
    ]
    for i in range(count):
        name, original, change = originals[i % len(originals)]
        draw = random.Random(1000 * seed + i)
        yield f"{name} {seed}-{i}", lambda original=original, change=change, draw=draw: change(original, draw)


class TooLongError(BaseException):
    """Raised in the midst of a conversion that does not end."""


def _give_up(*_) -> None:
    raise TooLongError


def _peak_memory(reset: bool = False) -> int:
    """Peak of the resident memory in kB, as Linux counts it; from here on, if it is reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def convert_all(cases: Iterable[Case], folder: Path) -> Iterator[dict]:
    """Convert each and say what came out."""
    from diffusers_sde.conversion import convert, convert_classifier
    from diffusers_sde.conversion.checkpoint import detect_format

    torch_config, jax_config = description(TORCH)["config"], description(JAX)
    path = folder / "file"
    for name, make in cases:
        path.write_bytes(make())
        before, start = _peak_memory(reset=True), time.monotonic()
        signal.alarm(MAX_SECONDS)
        try:
            if name.startswith("classifier"):
                convert_classifier(path)
            else:
                convert(path, torch_config if detect_format(path) == "pytorch" else jax_config)
            outcome = "loaded"
        except ValueError as error:
            outcome = "refused" if str(path) in str(error) else f"no file is named: {error}"
        except (Exception, TooLongError):
            outcome = traceback.format_exc()[-1500:]
        signal.alarm(0)
        seconds, rise = time.monotonic() - start, _peak_memory() - before
        yield {"case": name, "outcome": outcome, "seconds": seconds, "kilobytes": rise, "size": path.stat().st_size}


def main() -> None:
    """Convert the targeted cases and as many random ones as asked for."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--random", type=int, default=300, help="number of random changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="which of the cases made by hand: every Nth")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as canary:
        os.environ["HOSTILE_CANARY"] = canary
        address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, 2 * (address_space + _ADDRESS_SPACE,))
        os.chdir(folder)
        signal.signal(signal.SIGALRM, _give_up)
        chosen = itertools.islice(targeted(), 0, None, arguments.every)
        for result in convert_all(itertools.chain(chosen, mutated(arguments.random, arguments.seed)), Path(folder)):
            print(json.dumps(result), flush=True)
        print(json.dumps({"written": os.listdir(canary), "beside": sorted(os.listdir(folder))}))


if __name__ == "__main__":
    main()
