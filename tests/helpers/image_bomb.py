# SPDX-License-Identifier: Apache-2.0
"""Small files that claim to be huge images."""

import struct
import zlib


def claimed_png(width: int, height: int) -> bytes:
    """Returns a PNG of less than 300 bytes whose header claims these dimensions.

    A reader that unpacks it before it looks at the header finds that it is truncated.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body
