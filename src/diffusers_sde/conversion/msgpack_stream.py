"""Walks a msgpack file from front to back, reading what is wanted and stepping over the rest.

A JAX checkpoint holds four copies of the parameters, one of which is needed. The other three are stepped over without
being read; values are decoded by `msgpack`, one at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# First byte -> (bytes of the length field, bytes per length beyond it), for types whose length is stored.
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXT = (0xC7, 0xC8, 0xC9)
_FIXED = {
    **dict.fromkeys((0xC0, 0xC2, 0xC3), 0),
    **{0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8},
    **{0xD4 + k: 1 + 2**k for k in range(5)},
}
_ARRAYS, _MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}

MAX_VALUE = 2**31
"""Bytes of the longest value that is read; the format's own chunks are half as long."""


class MsgpackStream:
    """A msgpack file as a sequence of headers and values.

    Args:
        path: the file, plain or gzip-compressed.

    Raises:
        ValueError: from every method, if the file ends too soon or is no msgpack.
    """

    def __init__(self, path: str | Path):
        self.path = path
        self._file = _open(path)
        self._next: bytes = b""

    def __enter__(self) -> "MsgpackStream":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def map_size(self) -> int | None:
        """Number of entries if a map comes next, whose header is then read; else None, and nothing is read."""
        first = self._peek()
        if 0x80 <= first <= 0x8F:
            self._take(1)
            return first & 0x0F
        if first in _MAPS:
            self._take(1)
            return int.from_bytes(self._take(_MAPS[first]), "big")
        return None

    def entries(self) -> Iterator[str]:
        """Keys of the map that comes next; the value must be taken before the next key is asked for."""
        size = self.map_size()
        if size is None:
            raise self.error("a map was expected")
        for _ in range(size):
            key = self.value()
            if not isinstance(key, str):
                raise self.error(f"a name was expected, not {key!r:.40}")
            yield key

    def value(self):
        """The next value, decoded; numpy's arrays and scalars come as `msgpack.ExtType`."""
        import msgpack

        parts: list[bytes] = []
        self._walk(parts)
        try:
            return msgpack.unpackb(b"".join(parts), strict_map_key=False)
        except Exception as error:  # whatever the decoder's own errors are
            raise self.error(f"{type(error).__name__}: {error}") from error

    def skip(self) -> None:
        """Step over the next value."""
        self._walk(None)

    def error(self, reason: str) -> ValueError:
        """The error to raise for a file that is not what it should be."""
        return ValueError(
            f"{self.path} is damaged or no JAX checkpoint ({reason}). If it was downloaded, look whether it is "
            "complete."
        )

    def _walk(self, parts: list[bytes] | None) -> None:
        """Pass one value, with all that it contains; its bytes are kept in `parts` or not read."""
        remaining, size = 1, 0
        while remaining:
            first = self._take(1)
            header, body, inside = self._measure(first[0])
            remaining += inside - 1
            if parts is None:
                self._pass(body)
                continue
            size += 1 + len(header) + body
            if size > MAX_VALUE:
                raise self.error("a value is longer than any that such a file holds")
            parts += (first, header, self._take(body))

    def _measure(self, first: int) -> tuple[bytes, int, int]:
        """Length field of the value that begins with byte `first`, bytes after it, and number of values inside."""
        if first <= 0x7F or first >= 0xE0 or first in _FIXED:
            return b"", _FIXED.get(first, 0), 0
        if first <= 0x9F:
            return b"", 0, (first & 0x0F) * (2 if first <= 0x8F else 1)
        if first <= 0xBF:
            return b"", first & 0x1F, 0
        if first in _SIZED:
            header = self._take(_SIZED[first])
            return header, int.from_bytes(header, "big") + (first in _EXT), 0
        if first in _ARRAYS or first in _MAPS:
            header = self._take(_ARRAYS.get(first) or _MAPS[first])
            return header, 0, int.from_bytes(header, "big") * (2 if first in _MAPS else 1)
        raise self.error(f"byte {first:#04x} has no meaning there")

    def _peek(self) -> int:
        if not self._next:
            self._next = self._take(1)
        return self._next[0]

    def _take(self, count: int) -> bytes:
        start = self._next[:count]
        self._next = self._next[count:]
        # In pieces, so that a wrong length of 2 GB costs no memory before the end of the file is found.
        pieces, count = [start], count - len(start)
        while count:
            piece = self._read(min(count, 2**24))
            if not piece:
                raise self.error("it ends in the middle of a value")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _pass(self, count: int) -> None:
        if count <= 2**12 or self._next:
            self._take(count)
            return
        try:
            self._file.seek(count - 1, 1)
        except (OSError, EOFError) as error:
            raise self.error(str(error)) from error
        self._take(1)  # seeking past the end is no error, reading there is

    def _read(self, count: int) -> bytes:
        import zlib

        try:
            return self._file.read(count)
        except (OSError, EOFError, zlib.error) as error:
            raise self.error(str(error)) from error


def _open(path: str | Path) -> BinaryIO:
    import gzip

    file = open(path, "rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return gzip.open(path, "rb")
    file.seek(0)
    return file
