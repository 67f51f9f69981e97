# SPDX-License-Identifier: Apache-2.0
"""Maintenance of a gallery on disk: verifying every byte, and rewriting it without waste."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from person_search.search.errors import UnsafePathError
from person_search.search.file_lock import FileLock
from person_search.search.gallery import Gallery
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
from person_search.search.store import GalleryStore, live_entries


@dataclass(frozen=True)
class CompactReport:
    """Result of :func:`compact`.

    Attributes:
        images: Number of images in the gallery now.
        persons: Number of persons in the gallery now.
        dropped_rows: Number of removed persons, those of replaced and removed images.
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
    is dropped, because its row numbers no longer apply.

    Raises:
        GalleryLockedError: If another process is writing.
    """
    with store.writing():
        old = store.manifest.segments
        locks = [
            FileLock(store.segment_folder(name) / LOCK, f"the segment '{name}'")
            for name in old
            if store.segment_folder(name).is_dir()
        ]
        for lock in locks:
            lock.acquire()
        try:
            name, report = _rewrite(store, old)
            store.replace_manifest(segments=(name,))
        finally:
            for lock in locks:
                lock.release()
        for replaced in old:
            shutil.rmtree(store.segment_folder(replaced), ignore_errors=True)
        Gallery(store).save_tracklets()  # the numbers of the rows have changed
        return report


def _rewrite(store: GalleryStore, old: tuple[str, ...]) -> tuple[str, CompactReport]:
    """Copies the live, intact entries of the old segments into a new one; returns its name."""
    segments, damaged, dim = [], [], store.manifest.dim
    for segment in old:
        contents, damage = _sound_contents(store.segment_folder(segment), dim)
        segments.append(contents)
        damaged += damage
    name = f"{max(map(int, old), default=0) + 1:04d}"
    new = store.segment_folder(name)
    shutil.rmtree(new, ignore_errors=True)  # left over from an interrupted compaction
    images = 0
    try:
        with SegmentWriter(new, dim, durable=False) as writer:
            for segment, contents, live in zip(old, segments, live_entries(segments), strict=True):
                vectors, boxes = map_rows(store.segment_folder(segment), contents.rows, dim)
                for entry in live:
                    own = slice(entry.first, entry.first + entry.rows)
                    writer.append(
                        replace(entry, first=0, rows=0, crc=0),
                        boxes[own, :4],
                        boxes[own, 4],
                        vectors[own],
                    )
                    images += not entry.error and (entry.frame or 0) >= 0
            writer.sync()
            persons = writer.rows
    except OSError:  # a full disk: free what was taken
        shutil.rmtree(new, ignore_errors=True)
        raise
    dropped = sum(contents.rows for contents in segments) - persons
    return name, CompactReport(images, persons, dropped, damaged)


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
