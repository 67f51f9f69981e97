# SPDX-License-Identifier: Apache-2.0
"""One writer at a time, on one machine or on a file system that several machines share.

The lock is the kernel's (``flock``). It ends with the process that holds it, however that ends, so
no lock is ever left behind. What the file says (process, machine, since when) is for people; after
a kill it still names the dead process, and the next owner reports that.
"""

import fcntl
import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path
from types import TracebackType

from person_search.search.errors import GalleryLockedError

logger = logging.getLogger(__name__)


class FileLock:
    """A context manager that holds a lock file.

    Args:
        path: of the lock file; it stays there, unlocked and empty, when nobody writes.
        what: what is being locked, for messages.
    """

    def __init__(self, path: str | os.PathLike, what: str) -> None:
        self.path = Path(path)
        self.what = what
        self._handle: int | None = None

    def acquire(self) -> None:
        """Takes the lock, or raises at once.

        Raises:
            GalleryLockedError: another process has it.
        """
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            owner = _read_owner(handle)
            os.close(handle)
            raise GalleryLockedError(
                f"{self.what} is being written by {_describe(owner)}. Wait until it has finished, "
                "or end it; what it has written so far is kept."
            ) from e
        before = _read_owner(handle)
        if before:
            logger.info("Took over the lock of %s from %s, which is gone.", self.what,
                        _describe(before))  # fmt: skip
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().isoformat(" ", "seconds"),
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Gives the lock back; without effect if it is not held."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _read_owner(handle: int) -> dict:
    """What the lock file says; {} if nothing or nonsense."""
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('since')})"
