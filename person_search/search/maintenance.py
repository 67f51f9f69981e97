# SPDX-License-Identifier: Apache-2.0
"""Looking after a gallery on disk: checking every byte, and writing it anew without the waste."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from person_search.search.errors import UnsafePathError
from person_search.search.file_lock import FileLock
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
    """What :func:`compact` has kept and dropped.

    Args:
        images, persons: that are in the gallery now.
        dropped_rows: persons of replaced or removed images. damaged: images that were lost.
    """

    pictures: int
    persons: int
    dropped_rows: int
    damaged: list[str]


def verify(store: GalleryStore) -> list[str]:
    """Reads everything and returns what is wrong, in words; [] if all is well.

    The unfinished end of an interrupted run is nothing wrong. Images whose files are gone or have
    changed since are named too: their persons are found, but cannot be shown.
    """
    problems: list[str] = []
    segments = []
    for name in store.manifest.segments:
        entries, rows, damage = _sound_entries(store.segment_folder(name), store.manifest.dim)
        problems += damage
        segments.append(SegmentContents(entries, rows, 0))
    for entries in live_entries(segments):
        for entry in entries:
            try:
                file = store.image_path(entry.root, entry.path)
                status = file.stat()
            except UnsafePathError as e:
                problems.append(str(e))
            except OSError:
                problems.append(f"the image '{entry.path}' is gone.")
            else:
                if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
                    problems.append(f"the image '{entry.path}' has changed; index it again.")
    return list(dict.fromkeys(problems))


def compact(store: GalleryStore) -> CompactReport:
    """Writes all segments anew as one, without replaced, removed and damaged images.

    The manifest changes last: if it is interrupted, the gallery is as it was. An approximate index
    does not survive, since the rows have other numbers.

    Raises:
        GalleryLockedError: somebody is writing.
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
            name, report = _write_anew(store, old)
            store.replace_manifest(segments=(name,))
        finally:
            for lock in locks:
                lock.release()
        for gone in old:
            shutil.rmtree(store.segment_folder(gone), ignore_errors=True)
        return report


def _write_anew(store: GalleryStore, old: tuple[str, ...]) -> tuple[str, CompactReport]:
    """Copies what counts of the old segments into a new one; returns its name."""
    segments, damaged, dim = [], [], store.manifest.dim
    for segment in old:
        entries, rows, damage = _sound_entries(store.segment_folder(segment), dim)
        segments.append(SegmentContents(entries, rows, 0))
        damaged += damage
    name = f"{max(map(int, old), default=0) + 1:04d}"
    shutil.rmtree(store.segment_folder(name), ignore_errors=True)  # of an interrupted compaction
    pictures = 0
    with SegmentWriter(store.segment_folder(name), dim, durable=False) as writer:
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
                pictures += not entry.error and (entry.frame or 0) >= 0
        writer.sync()
        persons = writer.rows
    dropped = sum(contents.rows for contents in segments) - persons
    return name, CompactReport(pictures, persons, dropped, damaged)


def _sound_entries(folder: Path, dim: int) -> tuple[list[Entry], int, list[str]]:
    """The entries of a segment whose rows are there and unchanged, their end, and all damage."""
    entries, problems, pending = [], [], []
    for number, _, entry in scan_log(folder):
        if entry is None:
            pending.append(f"line {number} of '{folder.name}/entries.log' is damaged.")
            continue
        problems += pending  # damage with good lines behind it
        pending = []
        entries.append(entry)
    vectors, boxes = _rows_that_are_there(folder, dim)
    there, sound = min(len(vectors), len(boxes)), []
    for entry in entries:
        end = entry.first + entry.rows
        if end > there:
            problems.append(f"the persons of '{entry.path}' are missing in '{folder.name}'.")
        elif (
            entry.rows
            and checksum(vectors[entry.first : end], boxes[entry.first : end]) != entry.crc
        ):
            problems.append(f"the persons of '{entry.path}' in '{folder.name}' are damaged.")
        else:
            sound.append(entry)
    return sound, max((e.first + e.rows for e in sound), default=0), problems


def _rows_that_are_there(folder: Path, dim: int) -> tuple[np.ndarray, np.ndarray]:
    return map_rows(folder, min(count_rows(folder, dim)), dim)
