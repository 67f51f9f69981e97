# SPDX-License-Identifier: Apache-2.0
"""One writer at a time, on one machine or on a file system shared by several machines.

The lock belongs to the kernel (``flock``, on Windows a locked byte) and ends with the process that
holds it, so no stale lock remains. The content of the lock file (process, host, start time) is
informational; after a kill it still names the dead process, which the next owner logs.
"""

import json
import logging
import os
import socket
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from person_search.search.errors import GalleryLockedError

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        """Locks a byte far behind the content, since no other process can read a locked byte."""
        os.lseek(handle, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as e:
            raise BlockingIOError(e.errno, e.strerror) from e

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


logger = logging.getLogger(__name__)


class FileLock:
    """A lock file; a context manager.

    Args:
        path: Lock file. It remains when the lock is released, unlocked and empty.
        what: Name of the locked object for messages.
    """

    def __init__(self, path: str | os.PathLike, what: str) -> None:
        self.path = Path(path)
        self.what = what
        self._handle: int | None = None

    def acquire(self) -> None:
        """Acquires the lock without waiting.

        Raises:
            GalleryLockedError: If another process holds it.
        """
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
        except OSError as e:
            owner = _read_owner(handle)
            os.close(handle)
            if not isinstance(e, BlockingIOError):  # a file system without locks
                raise OSError(e.errno, f"cannot lock: {e.strerror}", str(self.path)) from e
            raise GalleryLockedError(
                f"{self.what} is being written by {_describe(owner)}. Wait until that process has "
                "finished, or stop it; what it has written so far is kept."
            ) from e
        before = _read_owner(handle)
        if before:
            logger.info("Took over the lock of %s from %s, which no longer runs.", self.what,
                        _describe(before))  # fmt: skip
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().isoformat(" ", "seconds"),
        }
        self._handle = handle
        with suppress(OSError):  # a full disk; the lock itself needs no space
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(owner).encode())

    def release(self) -> None:
        """Releases the lock if it is held."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _read_owner(handle: int) -> dict:
    """Returns the content of a lock file; {} if it is empty or invalid."""
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        owner = json.loads(os.read(handle, 4096))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('since')})"
