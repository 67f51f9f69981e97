# SPDX-License-Identifier: Apache-2.0
"""The lock of a gallery on Windows; tests/search/test_store.py has the lock of this system."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from person_search.search import file_lock
from person_search.search.errors import GalleryLockedError


@pytest.fixture
def windows_lock(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as imported on Windows, with an msvcrt that locks bytes of open files."""
    locked: dict[tuple[int, int, int], int] = {}

    def locking(handle: int, mode: int, size: int) -> None:
        assert size == 1
        status = os.fstat(handle)
        byte = (status.st_dev, status.st_ino, os.lseek(handle, 0, os.SEEK_CUR))
        if locked.setdefault(byte, handle) != handle:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    spec = importlib.util.spec_from_file_location("windows_file_lock", file_lock.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as windows:
        windows.setattr(sys, "platform", "win32")
        spec.loader.exec_module(module)
    return module


def test_second_writer_is_refused_and_the_owner_is_named(windows_lock, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = windows_lock.FileLock(path, "the gallery")
    first.acquire()
    with pytest.raises(GalleryLockedError, match=f"written by process {os.getpid()} on "):
        windows_lock.FileLock(path, "the gallery").acquire()
    assert path.stat().st_size < 1000, "the locked byte lies behind the content"
    first.release()
    assert path.read_bytes() == b""
