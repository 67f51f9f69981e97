# SPDX-License-Identifier: Apache-2.0
"""File names as text: stored independently of the locale, and printed with escapes."""

import os
import unicodedata
from contextlib import suppress


def to_stored(path: str | os.PathLike) -> str:
    """Returns a path as galleries store it: UTF-8, with other bytes as surrogates (PEP 383).

    The result is the same in every locale; in a UTF-8 locale it is the path itself.
    """
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def from_stored(name: str) -> str:
    """Inverse of :func:`to_stored`: the path that the operating system understands.

    Raises:
        UnicodeEncodeError: If the name contains a surrogate that does not stand for a byte.
    """
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def printable(text: str | os.PathLike) -> str:
    r"""Returns text for a person to read, on one line and valid in any encoding of Unicode.

    Bytes that are not UTF-8 appear as ``\xe9``, line feeds and other control characters as
    ``\n`` or ``\x07``.
    """
    text = os.fspath(text)
    with suppress(UnicodeEncodeError):  # in an ASCII locale: text that is not a native path
        text = to_stored(text)
    if text.isprintable():
        return text
    shown = []
    for c in text:
        if c.isprintable() or unicodedata.category(c) == "Zs":
            shown.append(c)
        elif "\udc80" <= c <= "\udcff":
            shown.append(f"\\x{ord(c) - 0xDC00:02x}")
        else:
            shown.append(c.encode("unicode_escape").decode())
    return "".join(shown)
