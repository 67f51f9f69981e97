# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced as a whole: after an error or a crash there is the old one or the new."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

SUFFIX = ".tmp"
"""Of what a killed process leaves behind; never the suffix of anything that is read."""


def write_atomically(
    path: str | os.PathLike,
    write: bytes | Callable[[BinaryIO], Any],
    *,
    durable: bool = False,
    temporary: str | os.PathLike | None = None,
) -> None:
    """Writes a file under another name beside it, then renames it.

    Several processes may write the same file: each has a file of its own, the last rename wins.

    Args:
        path: replaced at the very end; its folder is made if need be.
        write: the content, or what writes it to a binary file.
        durable: force it to the disk before the rename, and the rename as well.
        temporary: the other name, where only one process writes; default: one that is free.

    Raises:
        OSError: it cannot be written. ``path`` is as it was, as with any error of ``write``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if temporary is None:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are their owner's only
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
    except BaseException:  # an interrupt, too: leave no litter
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; not every file system can, and none needs it to be consistent."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
