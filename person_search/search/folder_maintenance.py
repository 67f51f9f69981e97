# SPDX-License-Identifier: Apache-2.0
"""Rewriting a gallery on disk, which deletes for good, and reading every byte of it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from person_search.search.approximate import DESCRIPTION, read_description
from person_search.search.entries import Entry, checksum
from person_search.search.errors import GalleryError
from person_search.search.file_lock import FileLock
from person_search.search.folder_store import MANIFEST, SEGMENTS, FolderStore, live_entries
from person_search.search.segment import (
    LOCK,
    SegmentContents,
    SegmentWriter,
    count_rows,
    map_rows,
    scan_log,
)
from person_search.search.store import CompactReport, Keep
from person_search.utils.files import SUFFIX, sync_folder


def replace_segments(
    store: FolderStore, keep: Keep, check: Callable[[], None] = lambda: None
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
        store.gallery().save_tracklets()  # the numbers of the rows have changed
        return report


def _delete_left_over(store: FolderStore) -> None:
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
    store: FolderStore, keep: Keep, check: Callable[[], None]
) -> tuple[str, tuple[str, ...], CompactReport]:
    """Copies what stays into a new segment.

    Returns:
        Name of the segment, folders of the images that its entries refer to, and the report.
    """
    old, dim = store.manifest.segments, store.manifest.dim
    segments, damaged = [], []
    for segment in old:
        contents, damage = sound_contents(store.segment_folder(segment), dim)
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
                images += entry.is_shown
            writer.sync()
            persons = writer.rows
    except OSError:  # a full disk: free what was taken
        shutil.rmtree(new, ignore_errors=True)
        raise
    dropped = sum(contents.rows for contents in segments) - persons
    names = tuple(store.manifest.roots[root] for root in roots)
    return name, names, CompactReport(images, persons, dropped, damaged)


def sound_contents(folder: Path, dim: int) -> tuple[SegmentContents, list[str]]:
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
