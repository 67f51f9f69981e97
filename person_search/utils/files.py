# SPDX-License-Identifier: Apache-2.0
"""Atomic file replacement: after an error or a crash, the old or the new file is complete."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

SUFFIX = ".tmp"
"""Suffix of temporary files that a killed process leaves behind; they are never read."""


def write_atomically(
    path: str | os.PathLike,
    write: bytes | Callable[[BinaryIO], Any],
    *,
    durable: bool = False,
    temporary: str | os.PathLike | None = None,
) -> None:
    """Writes a temporary file in the same folder, then renames it to ``path``.

    Several processes may write the same path: each has its own temporary file, the last one wins.

    Args:
        path: File to replace. Its folder is created if it does not exist.
        write: Content of the file, or a function that writes it to a binary file.
        durable: Whether to flush the file and the rename to the disk.
        temporary: Name of the temporary file, if only one process writes. Default: a unique name.

    Raises:
        OSError: If the file cannot be written, with its path. ``path`` is as before, as with any
            other error of ``write``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if temporary is None:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX)
        os.chmod(name, 0o666 & ~_umask())  # only the owner can read files of mkstemp
        file, temporary = os.fdopen(handle, "wb"), Path(name)
    else:
        temporary = Path(temporary)
        file = temporary.open("wb")
    try:
        with file:
            file.write(write) if isinstance(write, bytes) else write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as e:  # also an interrupt
        with suppress(OSError):
            temporary.unlink()
        if isinstance(e, OSError) and e.errno and e.filename is None:  # of a write to an open file
            raise OSError(e.errno, e.strerror, str(path)) from e
        raise
    if durable:
        sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: str | os.PathLike) -> None:
    """Flushes renames and deletions in a folder to the disk, if its file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
