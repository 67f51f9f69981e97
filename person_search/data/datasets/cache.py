# SPDX-License-Identifier: Apache-2.0
"""Arrays that are costly to read from MATLAB files, kept as ``.npz`` until their sources change.

A cache file lies in ``<data set>/.person_search/``; where that folder cannot be written, in
``$PERSON_SEARCH_CACHE`` (default ``~/.cache/person_search``) under a name made from the root.
Each file holds the fingerprint of its sources: names, lengths in bytes and times of change.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

CACHE_FOLDER = ".person_search"
"""Name of the folder that the readers add to a data set."""

_FINGERPRINT = "fingerprint"
_FORMAT = "1"  # raise it when the meaning of any cached array changes


def fingerprint(paths: Iterable[str | Path]) -> str:
    """Returns a digest of name, length and time of change of all files.

    Raises:
        FileNotFoundError: for the first file that is not there.
    """
    digest = hashlib.sha1(_FORMAT.encode(), usedforsecurity=False)
    for path in paths:
        stat = os.stat(path)
        digest.update(f"{os.path.basename(path)}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cache_paths(root: Path, name: str) -> list[Path]:
    """Returns where the cache file ``name`` of a data set may lie, the preferred place first."""
    base = os.environ.get("PERSON_SEARCH_CACHE") or Path.home() / ".cache" / "person_search"
    place = hashlib.sha1(str(root.resolve()).encode(), usedforsecurity=False).hexdigest()[:16]
    return [root / CACHE_FOLDER / f"{name}.npz", Path(base) / place / f"{name}.npz"]


def read_cache(root: Path, name: str, key: str) -> dict[str, np.ndarray] | None:
    """Returns the cached arrays, or None where there are none of this fingerprint."""
    for path in cache_paths(root, name):
        try:
            with np.load(path, allow_pickle=False) as data:
                if str(data[_FINGERPRINT]) == key:
                    return {field: data[field] for field in data.files if field != _FINGERPRINT}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            logger.warning(f"ignoring the damaged cache file {path} ({e}); it will be rewritten")
    return None


def write_cache(root: Path, name: str, key: str, arrays: dict[str, np.ndarray]) -> Path | None:
    """Writes the arrays at the first writable place, whole or not at all.

    Returns:
        The file, or None (after a warning) where no place is writable.
    """
    members: dict[str, Any] = {_FINGERPRINT: np.array(key), **arrays}
    problem = None
    for path in cache_paths(root, name):
        try:
            write_atomically(path, lambda file: np.savez(file, **members))
            return path
        except OSError as e:
            problem = e
    logger.warning(
        f"cannot keep {name} of {root} for the next run ({problem}); "
        "set PERSON_SEARCH_CACHE to a writable folder to save the time of reading it again"
    )
    return None


def cached_arrays(
    root: Path,
    name: str,
    sources: Iterable[str | Path],
    build: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Returns ``build()``, from the cache where no source has changed since.

    Args:
        root: folder of the data set.
        name: name of the cache file, without extension.
        sources: files that the arrays are made from.
        build: makes the arrays; none may have an object dtype.
    """
    key = fingerprint(sources)
    arrays = read_cache(root, name, key)
    if arrays is None:
        arrays = build()
        write_cache(root, name, key, arrays)
    return arrays
