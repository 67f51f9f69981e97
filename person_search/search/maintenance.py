# SPDX-License-Identifier: Apache-2.0
"""Maintenance of a gallery on disk: verifying every byte, rewriting it, deleting for good."""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from person_search.search.approximate import DESCRIPTION, read_description
from person_search.search.errors import GalleryError, UnsafePathError
from person_search.search.file_lock import FileLock
from person_search.search.gallery import Gallery, same_boxes
from person_search.search.names import from_stored
from person_search.search.segment import (
    LOCK,
    Entry,
    SegmentContents,
    SegmentWriter,
    checksum,
    count_rows,
    map_rows,
    scan_log,
)
from person_search.search.store import MANIFEST, SEGMENTS, GalleryStore, live_entries
from person_search.utils.files import SUFFIX, sync_folder


@dataclass(frozen=True)
class CompactReport:
    """Result of :func:`compact`.

    Attributes:
        images: Number of images in the gallery now.
        persons: Number of persons in the gallery now.
        dropped_rows: Number of removed persons, those of replaced and removed images among them.
        damaged: Descriptions of the damage that was lost.
    """

    images: int
    persons: int
    dropped_rows: int
    damaged: list[str]


def verify(store: GalleryStore) -> list[str]:
    """Reads everything and describes what is wrong.

    The incomplete end of an interrupted run is not a problem. Images whose files are missing or
    have changed are included: their persons can be found but not shown.

    Returns:
        One sentence per problem; empty if everything is intact.
    """
    problems: list[str] = []
    segments = []
    for name in store.manifest.segments:
        contents, damage = _sound_contents(store.segment_folder(name), store.manifest.dim)
        problems += damage
        segments.append(contents)
    for entries in live_entries(segments):
        for entry in entries:
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
    """Rewrites all segments as one, without replaced, removed and damaged images.

    The manifest changes last: after an interruption the gallery is unchanged. An approximate index
    is deleted, because its row numbers no longer apply.

    Raises:
        GalleryLockedError: If another process is writing.
    """
    return _replace_segments(store, lambda entry, boxes: np.ones(len(boxes), bool))


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
    """Deletes images or persons; when it returns, no file of the gallery has their data.

    The gallery is rewritten as by :func:`compact`. After an interruption it is unchanged, or what
    is left of the deleted data is deleted by the next call, of :func:`compact` as well. A process
    that has opened the gallery before keeps what it has mapped until it reopens the gallery.

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
        matches = Gallery(store).persons_of(matches)
    for match in matches:
        persons[match["image"], match.get("frame")].append(match)
    unseen, missing = {str(source) for source in sources}, list(matches)
    root = cache(lambda number: os.path.realpath(store.root_path(number)))
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
        images += bool(inside) and _is_shown(entry)
        rows += int((~kept).sum())
        return None if inside else kept

    def check() -> None:
        if unseen:
            roots = [str(store.root_path(root)) for root in range(len(store.manifest.roots))]
            raise GalleryError(
                f"the gallery '{store.folder}' has no image of '{min(unseen)}'; nothing was "
                f"deleted. Its folders: {', '.join(roots)}."
            )
        if missing:
            raise GalleryError(
                f"the gallery '{store.folder}' has no person at {missing[0]['box']} in "
                f"'{missing[0]['image']}'; nothing was deleted. Search again for current matches."
            )

    report = _replace_segments(store, keep, check)
    return ForgetReport(images, rows, report.damaged)


def _names(path: str | os.PathLike) -> set[str]:
    """Returns the absolute paths that a file may be indexed as: through a link, or its target."""
    folder, name = os.path.split(os.path.abspath(path))
    return {os.path.realpath(path), os.path.join(os.path.realpath(folder), name)}


def _is_below(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder.rstrip(os.sep) + os.sep)


def _is_shown(entry: Entry) -> bool:
    """Whether an entry is an image or a frame that can be found."""
    return not entry.error and (entry.frame or 0) >= 0


Keep = Callable[[Entry, np.ndarray], np.ndarray | None]
"""Gets an entry and its boxes (n, 5). Returns which of its persons stay, (n,) bool, or None to
delete the whole entry."""


def _replace_segments(
    store: GalleryStore, keep: Keep, check: Callable[[], None] = lambda: None
) -> CompactReport:
    """Rewrites all segments as one, and deletes the old ones and the approximate index.

    Args:
        store: Gallery.
        keep: Decides what stays.
        check: Called when all entries have been seen; an error leaves the gallery unchanged.
    """
    with store.writing():
        _delete_left_over(store)
        old = store.manifest.segments
        locks = [
            FileLock(store.segment_folder(name) / LOCK, f"the segment '{name}'")
            for name in old
            if store.segment_folder(name).is_dir()
        ]
        for lock in locks:
            lock.acquire()
        try:
            name, roots, report = _rewrite(store, keep, check)
            store.replace_manifest(segments=(name,), roots=roots)
        finally:
            for lock in locks:
                lock.release()
        _delete_left_over(store)
        Gallery(store).save_tracklets()  # the numbers of the rows have changed
        return report


def _delete_left_over(store: GalleryStore) -> None:
    """Deletes what the manifest does not name: replaced segments, and an index of such segments."""
    folder, names = store.folder, store.manifest.segments
    try:
        index = read_description(folder)
    except GalleryError:  # damaged
        index = None
    files = [folder / DESCRIPTION, *folder.glob("index-*.faiss")]
    if index is not None and set(index.rows) <= set(names):
        files = [path for path in files if path.name not in (DESCRIPTION, index.file)]
    files += folder.glob(".index-*.faiss")  # these two of killed processes
    files += folder.glob(f".{MANIFEST}.*{SUFFIX}")
    for path in files:
        path.unlink(missing_ok=True)
    for segment in (folder / SEGMENTS).glob("*"):
        if segment.name not in names:
            shutil.rmtree(segment)
    for changed in (folder / SEGMENTS, folder):
        sync_folder(changed)


def _rewrite(
    store: GalleryStore, keep: Keep, check: Callable[[], None]
) -> tuple[str, tuple[str, ...], CompactReport]:
    """Copies what stays into a new segment.

    Returns:
        Name of the segment, folders of the images that its entries refer to, and the report.
    """
    old, dim = store.manifest.segments, store.manifest.dim
    segments, damaged = [], []
    for segment in old:
        contents, damage = _sound_contents(store.segment_folder(segment), dim)
        segments.append(contents)
        damaged += damage
    staying: list[tuple[int, Entry, np.ndarray]] = []
    maps = []
    for number, (contents, live) in enumerate(zip(segments, live_entries(segments), strict=True)):
        maps.append(map_rows(store.segment_folder(old[number]), contents.rows, dim))
        for entry in live:
            boxes = maps[-1][1][entry.first : entry.first + entry.rows]
            if (kept := keep(entry, boxes)) is not None:
                staying.append((number, entry, entry.first + np.flatnonzero(kept)))
    check()
    roots = sorted({entry.root for _, entry, _ in staying})
    name = f"{max(map(int, old), default=0) + 1:04d}"
    new = store.segment_folder(name)
    images = 0
    try:
        with SegmentWriter(new, dim, durable=False) as writer:
            for number, entry, own in staying:
                vectors, boxes = maps[number][0][own], maps[number][1][own]
                moved = replace(entry, root=roots.index(entry.root), first=0, rows=0, crc=0)
                writer.append(moved, boxes[:, :4], boxes[:, 4], vectors)
                images += _is_shown(entry)
            writer.sync()
            persons = writer.rows
    except OSError:  # a full disk: free what was taken
        shutil.rmtree(new, ignore_errors=True)
        raise
    dropped = sum(contents.rows for contents in segments) - persons
    names = tuple(store.manifest.roots[root] for root in roots)
    return name, names, CompactReport(images, persons, dropped, damaged)


def _sound_contents(folder: Path, dim: int) -> tuple[SegmentContents, list[str]]:
    """Returns the entries of a segment whose rows exist and are unchanged, and all damage."""
    entries: list[Entry] = []
    problems, pending = [], []
    for number, _, entry in scan_log(folder):
        if entry is None:
            pending.append(f"line {number} of '{folder.name}/entries.log' is damaged.")
            continue
        problems += pending  # damage followed by intact lines
        pending = []
        entries.append(entry)
    there, sound = min(count_rows(folder, dim)), []
    vectors, boxes = map_rows(folder, there, dim)
    for entry in entries:
        own = slice(entry.first, entry.first + entry.rows)
        if own.stop > there:
            problems.append(f"the persons of '{entry.path}' are missing in '{folder.name}'.")
        elif entry.rows and checksum(vectors[own], boxes[own]) != entry.crc:
            problems.append(f"the persons of '{entry.path}' in '{folder.name}' are damaged.")
        else:
            sound.append(entry)
    rows = max((entry.first + entry.rows for entry in sound), default=0)
    return SegmentContents(sound, rows, 0), problems
