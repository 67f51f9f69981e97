# SPDX-License-Identifier: Apache-2.0
"""Reading one large MATLAB struct array in small parts.

``scipy.io.loadmat`` reads a variable as a whole. A protocol with 4,000 gallery images for each of
2,900 queries would take about 11 GB of small Python objects that way. Here the file (format 5,
plain or packed) is walked as far as the elements of the outer struct array; a few of them at a time
are handed to scipy as a file of their own. What is not format 5 is left to scipy as a whole.

Each part of a file: 8 byte tag (type, length), then the content, filled up to 8 bytes.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from scipy.io import loadmat

from person_search.data.datasets.matlab import damaged_file, load_variable, struct_rows

_HEADER_BYTES = 128
_TYPE_INT8, _TYPE_INT32, _TYPE_UINT32 = 1, 5, 6
_TYPE_MATRIX = 14
_TYPE_COMPRESSED = 15
_CLASS_STRUCT = 2
_CHUNK_BYTES = 1 << 16
_BATCH_BYTES = 1 << 20  # of MATLAB data; about 20 times as much as Python objects


class _Element:
    """Reads the content of one top level element from a file, inflating it where it is packed."""

    def __init__(self, file: BinaryIO, length: int, compressed: bool):
        self._file = file
        self._left = length
        self._inflate = zlib.decompressobj() if compressed else None
        self._buffer = bytearray()

    def read(self, count: int) -> bytes:
        """Returns exactly ``count`` bytes; ``EOFError`` if there are fewer."""
        while len(self._buffer) < count:
            chunk = self._file.read(min(self._left, _CHUNK_BYTES))
            if not chunk:
                raise EOFError(f"{count - len(self._buffer)} bytes are missing")
            self._left -= len(chunk)
            self._buffer += self._inflate.decompress(chunk) if self._inflate else chunk
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


class _MatReader:
    """Walks the parts of one variable; knows the byte order of the file."""

    def __init__(self, element: _Element, order: str):
        self._element = element
        self._order = order

    def tag(self) -> tuple[int, int, bytes]:
        """Returns type, length and, in the short form, the content that sits in the tag."""
        raw = self._element.read(8)
        kind, length = struct.unpack(f"{self._order}II", raw)
        if kind >> 16:  # up to 4 bytes of content: length and type share one number
            return kind & 0xFFFF, kind >> 16, raw[4 : 4 + (kind >> 16)]
        return kind, length, b""

    def part(self) -> bytes:
        """Returns the content of the next part, without padding."""
        _, length, content = self.tag()
        if content:
            return content
        return self._element.read(length + -length % 8)[:length]

    def matrix(self) -> bytes:
        """Returns the next matrix with its tag, as scipy wants it."""
        kind, length, _ = self.tag()
        if kind != _TYPE_MATRIX:
            raise ValueError(f"an element of type {kind} stands where a matrix is due")
        tag = struct.pack(f"{self._order}II", kind, length)
        return tag + self._element.read(length)

    def matrix_head(self) -> tuple[int, int, str]:
        """Reads the start of a matrix: its class, the number of its elements, its name."""
        (flags,) = struct.unpack_from(f"{self._order}I", self.part())
        shape = np.frombuffer(self.part(), f"{self._order}i4")
        return flags & 0xFF, int(np.prod(shape)), self.part().decode("ascii")

    def field_names(self) -> tuple[bytes, int]:
        """Reads the names of the fields, which follow the start of a struct matrix.

        Returns:
            All names, each filled up to the same width with zeros, and that width.
        """
        (width,) = struct.unpack(f"{self._order}i", self.part())
        return self.part(), width


def _pack_struct(header: bytes, order: str, names: bytes, width: int, elements: list[bytes]):
    """Makes a MATLAB file in memory: one variable ``part``, a (1, n) struct of raw elements."""

    def part(kind: int, content: bytes) -> bytes:
        padding = bytes(-len(content) % 8)
        return struct.pack(f"{order}II", kind, len(content)) + content + padding

    body = b"".join(
        [
            part(_TYPE_UINT32, struct.pack(f"{order}II", _CLASS_STRUCT, 0)),
            part(_TYPE_INT32, struct.pack(f"{order}ii", 1, len(elements))),
            part(_TYPE_INT8, b"part"),
            # the width must stand in the short form: type and length in one number
            struct.pack(f"{order}Ii", 4 << 16 | _TYPE_INT32, width),
            part(_TYPE_INT8, names),
            *elements,
        ]
    )
    return io.BytesIO(header + struct.pack(f"{order}II", _TYPE_MATRIX, len(body)) + body)


def _walk(file: BinaryIO, header: bytes, order: str, variable: str) -> Iterator[np.ndarray]:
    """Yields the struct array in parts; gives nothing if the variable is not in the file."""
    while tag := file.read(8):
        kind, length = struct.unpack(f"{order}II", tag)
        after = file.tell() + length
        reader = _MatReader(_Element(file, length, kind == _TYPE_COMPRESSED), order)
        if kind == _TYPE_COMPRESSED:
            reader.tag()
        mat_class, count, name = reader.matrix_head()
        if name == variable and mat_class == _CLASS_STRUCT:
            names, width = reader.field_names()
            batch, size = [], 0
            for index in range(count):
                batch.append(b"".join(reader.matrix() for _ in range(len(names) // width)))
                size += len(batch[-1])
                if size >= _BATCH_BYTES or index == count - 1:
                    yield loadmat(_pack_struct(header, order, names, width, batch))["part"]
                    batch, size = [], 0
            return
        file.seek(after)


def stream_struct(path: Path, variable: str, fields: Sequence[str]) -> Iterator[tuple]:
    """Iterates over the elements of the struct array ``variable``, few in memory at a time.

    Args:
        path: MATLAB file.
        variable: name of the struct array.
        fields: the fields to give, in this order.

    Yields:
        A tuple of arrays per element, as ``struct_rows`` of the whole variable would give.

    Raises:
        ValueError: if the file is damaged, or variable or fields are not in it.
    """
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128], "")
        is_format_5 = order and struct.unpack_from(f"{order}H", header, 124)[0] == 0x0100
        parts = _walk(file, header, order, variable) if is_format_5 else iter(())
        found = False
        while True:
            try:
                part = next(parts, None)
            except Exception as e:  # scipy raises many unrelated types on damaged bytes
                raise damaged_file(path, e) from e
            if part is None:
                break
            found = True
            yield from struct_rows(part, fields, f"{path}: {variable}")
    if not found:  # another format, an empty array, or not there: scipy knows, or says so
        yield from struct_rows(load_variable(path, [variable]), fields, str(path))
