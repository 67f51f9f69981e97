# SPDX-License-Identifier: Apache-2.0
"""A segment: the part of a gallery that one process writes. Three append-only files.

    vectors.f32   N x D float32, little endian: the embeddings
    boxes.f32     N x 5 float32: x1 y1 x2 y2 score
    entries.log   one line per image: checksum, then JSON with the rows of its persons

An image exists once its line is complete. Its rows are written and synced to disk before the line,
so a line never refers to missing rows. What follows the last complete line is left over from an
interrupted run: readers ignore it, and the next writer removes it.

Shape shorthand: N rows (persons) of the segment, n of one image, D embedding dimension.
Boxes are XYXY pixels of the upright image.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

import numpy as np

from person_search.search.entries import FLOAT, Entry, with_persons
from person_search.search.errors import GalleryDamagedError
from person_search.search.file_lock import FileLock
from person_search.utils.files import sync_folder

VECTORS, BOXES, LOG, LOCK = "vectors.f32", "boxes.f32", "entries.log", "segment.lock"
BOX_COLUMNS = 5
WAIT = 1.0
"""Seconds between two commits, unless images arrive more slowly."""


@dataclass(frozen=True)
class SegmentContents:
    """Readable content of a segment.

    Attributes:
        entries: All complete lines in writing order.
        rows: Number of their persons (N).
        log_bytes: Length of the complete lines.
    """

    entries: list[Entry]
    rows: int
    log_bytes: int


def scan_log(folder: Path) -> Iterator[tuple[int, int, Entry | None]]:
    """Yields (line number from 1, end of the line in bytes, entry or None if damaged)."""
    path = folder / LOG
    if not path.exists():
        return
    with path.open("rb") as file:
        end = 0
        for number, line in enumerate(file, 1):
            end += len(line)
            yield number, end, Entry.from_line(line[:-1]) if line.endswith(b"\n") else None


def read_segment(folder: Path) -> SegmentContents:
    """Reads the log of a segment without the remains of an interrupted run at its end.

    Raises:
        GalleryDamagedError: If a damaged line is followed by intact ones.
    """
    entries: list[Entry] = []
    log_bytes = rows = bad = 0
    for number, end, entry in scan_log(folder):
        if entry is None:
            bad = bad or number
        elif bad:
            raise GalleryDamagedError(
                f"line {bad} of '{folder / LOG}' is damaged. 'person-search verify' lists all "
                "damage, 'person-search compact' keeps everything else."
            )
        else:
            entries.append(entry)
            log_bytes, rows = end, max(rows, entry.first + entry.rows)
    return SegmentContents(entries, rows, log_bytes)


def map_rows(folder: Path, rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory-maps the first rows of a segment.

    Args:
        folder: Folder of the segment.
        rows: Number of rows N.
        dim: Embedding dimension D.

    Returns:
        Vectors (N, D) and boxes (N, 5).

    Raises:
        GalleryDamagedError: If the files have fewer rows.
    """
    arrays = []
    widths = ((VECTORS, dim), (BOXES, BOX_COLUMNS))
    for (name, width), there in zip(widths, count_rows(folder, dim), strict=True):
        path = folder / name
        if there < rows:
            raise _too_short(path, there, rows)
        # an empty file cannot be mapped
        mapped = np.memmap(path, FLOAT, "r", shape=(rows, width)) if rows else None
        arrays.append(np.zeros((0, width), FLOAT) if mapped is None else mapped.view(np.ndarray))
    return arrays[0], arrays[1]


def check_rows(folder: Path, vectors: np.ndarray, boxes: np.ndarray) -> None:
    """Checks that mapped rows still exist; reading missing ones would kill the process.

    A file deleted meanwhile lives as long as it is mapped, which is not damage.

    Args:
        folder: Folder of the segment.
        vectors: Vectors returned by :func:`map_rows`.
        boxes: Boxes returned by :func:`map_rows`.

    Raises:
        GalleryDamagedError: If a file has been truncated.
    """
    for name, mapped in ((VECTORS, vectors), (BOXES, boxes)):
        memory: object = mapped
        while isinstance(memory, np.ndarray):
            memory = memory.base
        # size of the mapped file, even if its name is gone or belongs to another file
        size = memory.size() if isinstance(memory, mmap) else mapped.nbytes
        if size < mapped.nbytes:
            width = mapped.shape[1] * FLOAT.itemsize
            raise _too_short(folder / name, size // width, len(mapped))


def _too_short(path: Path, there: int, rows: int) -> GalleryDamagedError:
    return GalleryDamagedError(
        f"'{path}' holds {there} persons, but the log beside it refers to {rows}. "
        "'person-search compact' keeps the images that are complete."
    )


def count_rows(folder: Path, dim: int) -> tuple[int, int]:
    """Returns the number of complete rows in the files of vectors and of boxes."""
    sizes = [
        path.stat().st_size if path.exists() else 0 for path in (folder / VECTORS, folder / BOXES)
    ]
    return sizes[0] // (dim * FLOAT.itemsize), sizes[1] // (BOX_COLUMNS * FLOAT.itemsize)


class SegmentWriter:
    """Appends images to a segment; a context manager that holds the lock of the segment.

    Args:
        folder: Folder of the segment, created if missing.
        dim: Embedding dimension D.
        durable: Sync to disk. False is faster; images then survive the end of the process, but not
            a power failure.
        together: Maximum number of images that are written and synced together; they wait for each
            other at most ``WAIT`` seconds.

    Raises:
        GalleryLockedError: If another process is writing the segment.
        GalleryDamagedError: See :func:`read_segment` and :func:`map_rows`.
    """

    def __init__(self, folder: Path, dim: int, durable: bool = True, together: int = 1) -> None:
        self.folder, self.dim, self.durable, self.together = folder, dim, durable, together
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK, f"the segment '{folder}'")
        self._lock.acquire()
        try:
            contents = read_segment(folder)
            map_rows(folder, contents.rows, dim)  # raises if rows are missing
            self.rows, self._log_bytes = contents.rows, contents.log_bytes
            self._written_rows = self.rows
            self._lines: list[bytes] = []
            self._last = time.monotonic()
            self._vectors = _open_at(folder / VECTORS, self.rows * dim * FLOAT.itemsize)
            self._boxes = _open_at(folder / BOXES, self.rows * BOX_COLUMNS * FLOAT.itemsize)
            self._log = _open_at(folder / LOG, contents.log_bytes)
            if durable:
                sync_folder(folder)  # the names of new files
        except BaseException:
            self._lock.release()
            raise

    def append(
        self,
        entry: Entry,
        boxes: np.ndarray | None = None,
        scores: np.ndarray | None = None,
        reid_feats: np.ndarray | None = None,
    ) -> Entry:
        """Adds one image; it is in the gallery at the latest after :meth:`commit`.

        Args:
            entry: Entry of the image; its rows and checksum are filled in.
            boxes: Boxes (n, 4); None for an entry without persons.
            scores: Detection scores (n,), with boxes.
            reid_feats: Embeddings (n, D) of unit length, with boxes.

        Returns:
            The entry as written.

        Raises:
            OSError: If the entry cannot be written, for example because the disk is full. The
                segment is unchanged.
            ValueError: If the embeddings do not have the shape (n, D).
        """
        entry, table, vectors = with_persons(entry, boxes, scores, reid_feats, self.dim, self.rows)
        rows = len(table)
        try:
            if rows:
                self._write(self._vectors, vectors.tobytes())
                self._write(self._boxes, table.tobytes())
        except OSError as e:
            self._cut_back()
            raise OSError(e.errno, e.strerror or str(e), str(self.folder)) from e
        self.rows += rows
        self._lines.append(entry.to_line())
        if len(self._lines) >= self.together or time.monotonic() - self._last >= WAIT:
            self.commit()
        return entry

    def commit(self) -> None:
        """Makes all added images a part of the gallery.

        Raises:
            OSError: As :meth:`append`.
        """
        if not self._lines:
            return
        lines, self._lines = b"".join(self._lines), []  # once, also if this is interrupted
        try:
            if self.rows > self._written_rows:
                self._sync(self._vectors, self._boxes)
            self._write(self._log, lines)
            self._sync(self._log)
        except OSError as e:
            self._cut_back()
            raise OSError(e.errno, e.strerror or str(e), str(self.folder)) from e
        self._written_rows = self.rows
        self._log_bytes += len(lines)
        self._last = time.monotonic()

    def sync(self) -> None:
        """Syncs all files to disk."""
        self.commit()
        for handle in (self._vectors, self._boxes, self._log):
            os.fsync(handle)

    def close(self) -> None:
        """Closes the files and releases the lock."""
        try:
            self.commit()
        finally:
            for handle in (self._vectors, self._boxes, self._log):
                os.close(handle)
            self._lock.release()

    def __enter__(self) -> "SegmentWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, handle: int, content: bytes) -> None:
        view = memoryview(content)
        while len(view):  # os.write may write a part only
            view = view[os.write(handle, view) :]

    def _sync(self, *handles: int) -> None:
        for handle in handles if self.durable else ():
            os.fdatasync(handle)

    def _cut_back(self) -> None:
        """Restores the last commit after a failed write."""
        self.rows, self._lines = self._written_rows, []
        sizes = {
            self._log: self._log_bytes,  # first, so that no line outlives its rows
            self._boxes: self.rows * BOX_COLUMNS * FLOAT.itemsize,
            self._vectors: self.rows * self.dim * FLOAT.itemsize,
        }
        for handle, size in sizes.items():
            os.ftruncate(handle, size)
            os.lseek(handle, size, os.SEEK_SET)


def _open_at(path: Path, size: int) -> int:
    """Opens a file for appending after ``size`` bytes; the rest is removed."""
    binary = getattr(os, "O_BINARY", 0)  # Windows would change line ends
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | binary, 0o644)
    os.ftruncate(handle, size)
    os.lseek(handle, size, os.SEEK_SET)
    return handle
