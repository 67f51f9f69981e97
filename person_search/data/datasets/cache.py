# SPDX-License-Identifier: Apache-2.0
"""Caches arrays that are slow to read as ``.npz`` files until their sources change.

A cache file lies in ``<data set>/.person_search/`` or, if that folder is not writable, in
``$PERSON_SEARCH_CACHE`` (default ``~/.cache/person_search``) under a name derived from the root.
Each file stores the fingerprint of its sources: names, sizes and modification times.
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
_FORMAT = "1"  # increase when the meaning of any cached array changes


def fingerprint(paths: Iterable[str | Path]) -> str:
    """Returns a digest of the names, sizes and modification times of files.

    Raises:
        FileNotFoundError: If a file does not exist.
    """
    digest = hashlib.sha1(_FORMAT.encode(), usedforsecurity=False)
    for path in paths:
        stat = os.stat(path)
        digest.update(os.fsencode(os.path.basename(path)))
        digest.update(f"|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cache_paths(root: Path, name: str) -> list[Path]:
    """Returns the possible places of the cache file ``name``, the preferred one first."""
    base = os.environ.get("PERSON_SEARCH_CACHE") or Path.home() / ".cache" / "person_search"
    place = hashlib.sha1(os.fsencode(root.resolve()), usedforsecurity=False).hexdigest()[:16]
    return [root / CACHE_FOLDER / f"{name}.npz", Path(base) / place / f"{name}.npz"]


def read_cache(root: Path, name: str, key: str) -> dict[str, np.ndarray] | None:
    """Returns the cached arrays with this fingerprint, or None."""
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
    """Writes the arrays to the first writable place, atomically.

    Returns:
        The file, or None (with a warning) if no place is writable.
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
        f"cannot cache {name} of {root} for the next run ({problem}); "
        "set PERSON_SEARCH_CACHE to a writable folder to avoid reading it again"
    )
    return None


def cached_arrays(
    root: Path,
    name: str,
    sources: Iterable[str | Path],
    build: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Returns ``build()``, from the cache if no source has changed.

    Args:
        root: Folder of the data set.
        name: Name of the cache file, without extension.
        sources: Files from which the arrays are made.
        build: Makes the arrays, none of which may have an object dtype.
    """
    key = fingerprint(sources)
    arrays = read_cache(root, name, key)
    if arrays is None:
        arrays = build()
        write_cache(root, name, key, arrays)
    return arrays
