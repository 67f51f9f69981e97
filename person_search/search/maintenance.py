# SPDX-License-Identifier: Apache-2.0
"""Maintenance of a gallery: verifying every byte, rewriting it, deleting for good."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from person_search.search.entries import Entry
from person_search.search.errors import GalleryError, UnsafePathError
from person_search.search.gallery import same_boxes
from person_search.search.names import from_stored
from person_search.search.remote import RemotePath, parse_place
from person_search.search.store import CompactReport, GalleryStore


def verify(store: GalleryStore) -> list[str]:
    """Reads everything and describes what is wrong.

    The incomplete end of an interrupted run is not a problem. Images whose files are missing or
    have changed are included: their persons can be found but not shown.

    Returns:
        One sentence per problem; empty if everything is intact.
    """
    problems: list[str] = []
    for entry in store.scan(problems):
        try:
            file = store.image_path(entry.root, entry.path)
            status = file.stat()
        except UnsafePathError as e:
            problems.append(str(e))
        except OSError:
            problems.append(f"the image '{entry.path}' is missing.")
        else:
            if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
                problems.append(f"the image '{entry.path}' has changed; index it again.")
    return list(dict.fromkeys(problems))


def compact(store: GalleryStore) -> CompactReport:
    """Rewrites a gallery without replaced, removed and damaged images.

    See :meth:`GalleryStore.rewrite`.

    Raises:
        GalleryLockedError: If another process is writing.
    """
    return store.rewrite(lambda entry, boxes: np.ones(len(boxes), bool))


@dataclass(frozen=True)
class ForgetReport:
    """Result of :func:`forget`.

    Attributes:
        images: Number of deleted images and frames.
        persons: Number of deleted persons.
        damaged: Descriptions of damage that was lost as well, see :class:`CompactReport`.
    """

    images: int
    persons: int
    damaged: list[str]


def forget(
    store: GalleryStore,
    sources: Sequence[str | os.PathLike] = (),
    matches: Sequence[Mapping[str, Any]] = (),
) -> ForgetReport:
    """Deletes images or persons for good.

    When it returns, no file of a gallery in a folder has their data; a server removes the bytes
    later, see docs/distributed.md. The gallery is rewritten as by :func:`compact`. After an
    interruption it is unchanged, or what is left of the deleted data is deleted by the next call,
    of :func:`compact` as well. A process that has opened the gallery before keeps what it has
    mapped until it reopens the gallery.

    Args:
        store: Gallery.
        sources: Folders, images and videos, which need not exist; all their images are deleted.
        matches: Matches as in ``results.jsonl``. Only the person of a match is deleted, of a
            tracklet in all its frames; the images and their other persons stay.

    Raises:
        GalleryError: If the gallery lacks a source or a match. Nothing is deleted.
        GalleryLockedError: If another process is writing.
    """
    folders = {name: source for source in sources for name in _names(source)}
    persons: dict[tuple[str, int | None], list[Mapping[str, Any]]] = defaultdict(list)
    if any("tracklet" in match for match in matches):
        matches = store.gallery().persons_of(matches)
    for match in matches:
        persons[match["image"], match.get("frame")].append(match)
    unseen, missing = {str(source) for source in sources}, list(matches)
    root = cache(lambda number: str(store.root_path(number).resolve()))
    images = rows = 0

    def keep(entry: Entry, boxes: np.ndarray) -> np.ndarray | None:
        nonlocal images, rows
        name = os.path.join(root(entry.root), from_stored(entry.path))
        inside = {str(folders[folder]) for folder in folders if _is_below(name, folder)}
        kept = np.full(len(boxes), not inside)
        unseen.difference_update(inside)
        for match in persons.get((str(store.named_path(entry.root, entry.path)), entry.frame), ()):
            same = same_boxes(boxes, match["box"])
            if same.any() and match in missing:
                missing.remove(match)
            kept &= ~same
        images += bool(inside) and entry.is_shown
        rows += int((~kept).sum())
        return None if inside else kept

    def check() -> None:
        if unseen:
            roots = [str(store.root_path(root)) for root in store.roots]
            raise GalleryError(
                f"the gallery '{store.location}' has no image of '{min(unseen)}'; nothing was "
                f"deleted. Its folders: {', '.join(roots)}."
            )
        if missing:
            raise GalleryError(
                f"the gallery '{store.location}' has no person at {missing[0]['box']} in "
                f"'{missing[0]['image']}'; nothing was deleted. Search again for current matches."
            )

    report = store.rewrite(keep, check)
    return ForgetReport(images, rows, report.damaged)


def _names(path: str | os.PathLike) -> set[str]:
    """Returns the absolute paths that a file may be indexed as: through a link, or its target."""
    if isinstance(place := parse_place(path), RemotePath):
        return {place.url}
    folder, name = os.path.split(os.path.abspath(path))
    return {os.path.realpath(path), os.path.join(os.path.realpath(folder), name)}


def _is_below(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder.rstrip(os.sep) + os.sep)
