# SPDX-License-Identifier: Apache-2.0
"""Images at URLs of fsspec: object stores and web servers.

A place is a ``Path`` or a ``RemotePath``, which has what is used of ``Path``. A remote file is read
from a temporary copy. Credentials are those that fsspec finds (environment, configuration files).
"""

import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from person_search.search.errors import RemoteError

TIMES = ("mtime", "LastModified", "last_modified", "updated", "Last-Modified", "created")
"""Names of the modification time in the information of fsspec; they differ between protocols."""


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder.

    Attributes:
        url: URL without a slash at its end.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url

    def __truediv__(self, path: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{path}")

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """Folder of the file."""
        return RemotePath(self.url.rpartition("/")[0])

    def resolve(self) -> "RemotePath":
        """Returns the path itself; there are no links."""
        return self

    def is_relative_to(self, other: os.PathLike) -> bool:
        """Whether the path is a folder or below it."""
        return f"{self}/".startswith(f"{os.fspath(other)}/")

    def relative_to(self, other: os.PathLike) -> PurePosixPath:
        """Returns the path within a folder."""
        return PurePosixPath(self.url[len(os.fspath(other)) + 1 :])

    def stat(self) -> SimpleNamespace:
        """Returns ``st_mode``, ``st_size`` and ``st_mtime_ns`` of a file.

        Raises:
            FileNotFoundError: If the file does not exist.
            RemoteError: If the server is away or refuses.
        """
        with self._opened() as (fs, name):
            size, time = _state(fs.info(name))
        return SimpleNamespace(st_mode=stat.S_IFREG, st_size=size, st_mtime_ns=time)

    def files(self, recursive: bool) -> list[tuple["RemotePath", int, int]]:
        """Returns the files of this folder, or this file, with size and modification time.

        Raises:
            RemoteError: If the server is away or refuses.
        """
        with self._opened() as (fs, name):
            found = fs.find(name, maxdepth=None if recursive else 1, detail=True)
            listed = []
            for one, info in found.items():
                known = info if info.get("size") is not None else fs.info(one)
                path = one[len(name) :].strip("/") if one.startswith(name) else ""
                listed.append((self / path if path else self, *_state(known)))
            return listed

    def copy_to(self, file: str) -> None:
        """Copies a file to this machine.

        Raises:
            FileNotFoundError: If it does not exist.
            RemoteError: If the server is away or refuses.
        """
        with self._opened() as (fs, name):
            fs.get_file(name, file)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        try:
            from fsspec.core import url_to_fs

            yield url_to_fs(self.url, use_listings_cache=False)
        except FileNotFoundError as e:
            raise FileNotFoundError(f"'{self}' does not exist.") from e
        except ImportError as e:
            raise RemoteError(
                f"cannot read '{self}': {e}; pip install 'person-search[fsspec]'"
            ) from e
        except Exception as e:  # that of any server
            why = " ".join(str(e).split())[:300]
            raise RemoteError(f"cannot read '{self}': {why or type(e).__name__}") from e


Place = Path | RemotePath


def parse_place(place: str | os.PathLike) -> Place:
    """Returns the path of a file or folder, which may be a URL.

    Raises:
        RemoteError: If the URL stands for a file of this machine, or has a password.
    """
    text = os.fspath(place)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.:-]+)://", text)
    if found is None:
        return Path(text)
    if "::" in text or found[1].lower() in ("file", "local"):
        raise RemoteError(f"'{text}' is not a URL of a server; name a local file by its path.")
    if re.match(r"[^/@]*:[^/@]*@", text[found.end() :]):
        shown = f"{found[0]}***@{text[found.end() :].partition('@')[2]}"
        raise RemoteError(
            f"'{shown}' has a password, which galleries and reports would contain; set it in the "
            "environment or in the configuration of fsspec."
        )
    return RemotePath(text.rstrip("/"))


@contextmanager
def local_copy(place: str | os.PathLike) -> Iterator[str]:
    """Yields a local file with the content of a file; errors name the original.

    Args:
        place: The file, local or remote.

    Raises:
        FileNotFoundError: If it does not exist.
        RemoteError: If the server is away or refuses.
    """
    from person_search.data import BadImageError  # imports PyTorch, which --help does not need

    remote = parse_place(place)
    if not isinstance(remote, RemotePath):
        yield os.fspath(place)
        return
    with tempfile.TemporaryDirectory(prefix="person_search_") as folder:
        copy = os.path.join(folder, f"copy{PurePosixPath(remote.name).suffix}")
        remote.copy_to(copy)
        try:
            yield copy
        except (BadImageError, FileNotFoundError) as e:
            raise type(e)(str(e).replace(copy, str(remote))) from e


def _state(info: Mapping[str, Any]) -> tuple[int, int]:
    """Returns size and modification time in ns; without a time, a number that changes instead."""
    size = int(info["size"] or 0)
    for name in TIMES:
        if time := info.get(name):
            if isinstance(time, str):
                parse = parsedate_to_datetime if "," in time else datetime.fromisoformat
                time = parse(time)
            seconds = time.timestamp() if isinstance(time, datetime) else time
            return size, int(seconds * 1e9)
    return size, zlib.crc32(str(info.get("ETag")).encode())
