# SPDX-License-Identifier: Apache-2.0
"""Reads MATLAB files: variables as ``scipy.io.loadmat`` returns them, and large structs in parts.

``loadmat`` reads a variable as a whole. A protocol with 4,000 gallery images for each of 2,900
queries would take about 11 GB of small Python objects. :func:`stream_struct` therefore walks a file
of format 5 (plain or compressed) to the elements of the outer struct array and passes a few at a
time to SciPy as a file of their own. Other formats are left to SciPy as a whole.

Each part of a file consists of an 8-byte tag (type, length) and the content, padded to 8 bytes.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from scipy.io import loadmat

_HEADER_BYTES = 128
_TYPE_INT8, _TYPE_INT32, _TYPE_UINT32 = 1, 5, 6
_TYPE_MATRIX = 14
_TYPE_COMPRESSED = 15
_CLASS_STRUCT = 2
_CHUNK_BYTES = 1 << 16
_BATCH_BYTES = 1 << 20  # of MATLAB data; about 20 times as much as Python objects


def _unreadable(path: Path, error: Exception) -> ValueError:
    if isinstance(error, NotImplementedError):  # SciPy's answer to HDF5
        return ValueError(
            f"{path} is a MATLAB file of version 7.3 (HDF5), which SciPy does not read: load it in "
            "MATLAB and save it with save(file, '-v7'), or convert it with h5py and "
            "scipy.io.savemat"
        )
    return ValueError(
        f"{path} is not a readable MATLAB file ({type(error).__name__}: {error}); it may have "
        "been copied only in part: copy it again"
    )


def load_variable(path: Path, names: Sequence[str]) -> np.ndarray:
    """Returns the first variable of ``names`` that the file contains.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is unreadable or contains none of the variables.
    """
    with open(path, "rb") as file:
        try:
            content = loadmat(file)
        except Exception as e:  # SciPy raises many unrelated types for a truncated file
            raise _unreadable(path, e) from e
    for name in names:
        if name in content:
            return content[name]
    held = sorted(name for name in content if not name.startswith("__"))
    raise ValueError(f"{path} contains the variables {held}, but none of {list(names)}")


def text(value: np.ndarray) -> str:
    """Returns the string in a MATLAB char array, e.g. ``array(['s1.jpg'])``; "" if empty."""
    value = np.asarray(value)
    return str(value.reshape(-1)[0]) if value.size else ""


def cell_strings(cells: np.ndarray) -> list[str]:
    """Returns the strings of a cell array of either orientation."""
    return [text(cell) for cell in cells.reshape(-1)]


def box_or_none(value: np.ndarray, where: str) -> np.ndarray | None:
    """Returns (4,) float64 of an ``idlocate`` field, or None if it is empty, i.e. (1, 0).

    The values are uint8 if they fit; float64 prevents their sums from wrapping.
    """
    value = np.asarray(value)
    if value.size == 0:
        return None
    if value.size != 4:
        raise ValueError(f"{where}: a box needs 4 numbers (x, y, w, h), got {value.tolist()}")
    return value.reshape(4).astype(np.float64)


def struct_rows(array: np.ndarray, fields: Sequence[str], where: str) -> Iterator[tuple]:
    """Iterates over the named fields of each element of a struct array of any shape.

    MATLAB stores an empty struct as an empty array without fields; it yields nothing.
    """
    if array.size == 0:
        return iter(())
    held = array.dtype.names or ()
    absent = [field for field in fields if field not in held]
    if absent:
        raise ValueError(f"{where}: the fields {absent} are absent; it has {list(held)}")
    return zip(*(array[field].reshape(-1) for field in fields), strict=True)


def stream_struct(path: Path, variable: str, fields: Sequence[str]) -> Iterator[tuple]:
    """Iterates over the elements of a struct array with few of them in memory at a time.

    Args:
        path: MATLAB file.
        variable: Name of the struct array.
        fields: Fields to return, in this order.

    Yields:
        A tuple of arrays per element, as ``struct_rows`` of the whole variable.

    Raises:
        ValueError: If the file is unreadable, or lacks the variable or a field.
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
            except Exception as e:  # SciPy raises many unrelated types for damaged bytes
                raise _unreadable(path, e) from e
            if part is None:
                break
            found = True
            yield from struct_rows(part, fields, f"{path}: {variable}")
    if not found:  # another format, an empty array, or absent: left to SciPy
        yield from struct_rows(load_variable(path, [variable]), fields, str(path))


class _MatReader:
    """Reads the parts of a top-level element of a file, decompressing it if necessary."""

    def __init__(self, file: BinaryIO, length: int, compressed: bool, order: str):
        self._file, self._left, self._order = file, length, order
        self._inflate = zlib.decompressobj() if compressed else None
        self._buffer = bytearray()

    def read(self, count: int) -> bytes:
        """Returns exactly ``count`` bytes; raises ``EOFError`` if there are fewer."""
        while len(self._buffer) < count:
            chunk = self._file.read(min(self._left, _CHUNK_BYTES))
            if not chunk:
                raise EOFError(f"{count - len(self._buffer)} bytes are missing")
            self._left -= len(chunk)
            self._buffer += self._inflate.decompress(chunk) if self._inflate else chunk
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def tag(self) -> tuple[int, int, bytes]:
        """Returns type, length and, in the short form, the content stored in the tag."""
        raw = self.read(8)
        kind, length = struct.unpack(f"{self._order}II", raw)
        if kind >> 16:  # up to 4 bytes of content: length and type share one number
            return kind & 0xFFFF, kind >> 16, raw[4 : 4 + (kind >> 16)]
        return kind, length, b""

    def part(self) -> bytes:
        """Returns the content of the next part, without padding."""
        _, length, content = self.tag()
        if content:
            return content
        return self.read(length + -length % 8)[:length]

    def matrix(self) -> bytes:
        """Returns the next matrix with its tag, as SciPy expects it."""
        kind, length, _ = self.tag()
        if kind != _TYPE_MATRIX:
            raise ValueError(f"an element of type {kind} was found where a matrix is expected")
        tag = struct.pack(f"{self._order}II", kind, length)
        return tag + self.read(length)

    def matrix_head(self) -> tuple[int, int, str]:
        """Reads the start of a matrix: its class, number of elements and name."""
        (flags,) = struct.unpack_from(f"{self._order}I", self.part())
        shape = np.frombuffer(self.part(), f"{self._order}i4")
        return flags & 0xFF, int(np.prod(shape)), self.part().decode("ascii")

    def field_names(self) -> tuple[bytes, int]:
        """Reads the field names that follow the start of a struct matrix.

        Returns:
            All names, each padded with zeros to the same width, and that width.
        """
        (width,) = struct.unpack(f"{self._order}i", self.part())
        return self.part(), width


def _pack_struct(header: bytes, order: str, names: bytes, width: int, elements: list[bytes]):
    """Creates a MATLAB file in memory with the variable ``part``, a (1, n) struct."""

    def part(kind: int, content: bytes) -> bytes:
        padding = bytes(-len(content) % 8)
        return struct.pack(f"{order}II", kind, len(content)) + content + padding

    body = b"".join(
        [
            part(_TYPE_UINT32, struct.pack(f"{order}II", _CLASS_STRUCT, 0)),
            part(_TYPE_INT32, struct.pack(f"{order}ii", 1, len(elements))),
            part(_TYPE_INT8, b"part"),
            # the width must be in the short form: type and length in one number
            struct.pack(f"{order}Ii", 4 << 16 | _TYPE_INT32, width),
            part(_TYPE_INT8, names),
            *elements,
        ]
    )
    return io.BytesIO(header + struct.pack(f"{order}II", _TYPE_MATRIX, len(body)) + body)


def _walk(file: BinaryIO, header: bytes, order: str, variable: str) -> Iterator[np.ndarray]:
    """Yields the struct array in parts; nothing if the file lacks the variable."""
    while tag := file.read(8):
        kind, length = struct.unpack(f"{order}II", tag)
        after = file.tell() + length
        reader = _MatReader(file, length, kind == _TYPE_COMPRESSED, order)
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
