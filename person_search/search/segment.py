# SPDX-License-Identifier: Apache-2.0
"""A segment: the part of a gallery that one process writes. Three files that only ever grow.

    vectors.f32   N x D float32, little endian: the embeddings
    boxes.f32     N x 5 float32: x1 y1 x2 y2 score
    entries.log   one line per image: checksum, then JSON with the rows that are its persons

An image exists once its line is complete. The rows are written before the line, and forced to the
disk before it, so a line never promises rows that are not there; what lies behind the last complete
line is the rest of an interrupted run, which readers ignore and the next writer cuts off.

Shape shorthand: N rows (persons) of the segment, n of one image, D length of an embedding.
Boxes are XYXY pixels of the image as people see it.
"""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from mmap import mmap
from pathlib import Path

import numpy as np

from person_search.search.errors import GalleryDamagedError
from person_search.search.file_lock import FileLock

VECTORS, BOXES, LOG, LOCK = "vectors.f32", "boxes.f32", "entries.log", "segment.lock"
BOX_COLUMNS = 5
FLOAT = np.dtype("<f4")
END_OF_VIDEO = -1
"""``Entry.frame`` of the line that says that a video has been read to its end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the log says about one image, one frame of a video, or the end of a video.

    Args:
        run: number of the run of ``index`` that wrote it; of two entries the later one counts.
        root: index into the manifest's folders. path: within that folder, with ``/``.
        size: of the file, bytes. mtime_ns: its time of change; both together notice changes.
        frame: index of the frame; None for an image; ``END_OF_VIDEO``.
        offset: of the frame, seconds from the start of the video.
        time: seconds since 1970, None if unknown. camera: "" if unknown.
        width, height: pixels.
        error: why it could not be read; "" otherwise.
        removed: the file is gone or has changed: nothing before this line counts for it.
        every: seconds between sampled frames, at the end of a video.
        first, rows: its persons are the rows first ... first + rows - 1.
        crc: CRC-32 of these rows, vectors first.
    """

    run: int
    root: int
    path: str
    size: int
    mtime_ns: int
    frame: int | None = None
    offset: float | None = None
    time: float | None = None
    camera: str = ""
    width: int = 0
    height: int = 0
    error: str = ""
    removed: bool = False
    every: float | None = None
    first: int = 0
    rows: int = 0
    crc: int = 0

    def to_line(self) -> bytes:
        """The line of the log; fields at their default are left out."""
        fields = {k: v for k, v in asdict(self).items() if v != _DEFAULTS.get(k, _DEFAULTS)}
        text = json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)

    @classmethod
    def from_line(cls, line: bytes) -> "Entry | None":
        """Reads a line without its line feed; None if it is damaged."""
        try:
            if line[8:9] != b" " or int(line[:8], 16) != zlib.crc32(line[9:]):
                return None
            return cls(**json.loads(line[9:]))
        except (ValueError, TypeError):
            return None


_DEFAULTS = {
    name: field.default
    for name, field in Entry.__dataclass_fields__.items()
    if isinstance(field.default, (int, float, str, bool, type(None)))
}


@dataclass(frozen=True)
class SegmentContents:
    """What readers see of a segment.

    Args:
        entries: all complete lines, in the order of writing.
        rows: persons in them (N).
        log_bytes: length of the complete lines.
    """

    entries: list[Entry]
    rows: int
    log_bytes: int


def scan_log(folder: Path) -> Iterator[tuple[int, int, Entry | None]]:
    """Yields (line number from 1, bytes up to its end, entry or None if it is damaged)."""
    path = folder / LOG
    if not path.exists():
        return
    with path.open("rb") as file:
        end = 0
        for number, line in enumerate(file, 1):
            end += len(line)
            yield number, end, Entry.from_line(line[:-1]) if line.endswith(b"\n") else None


def read_segment(folder: Path) -> SegmentContents:
    """Reads the log of a segment and leaves out what an interrupted run left at its end.

    Raises:
        GalleryDamagedError: a damaged line with good ones behind it, or rows that are not there.
    """
    entries: list[Entry] = []
    log_bytes = rows = bad = 0
    for number, end, entry in scan_log(folder):
        if entry is None:
            bad = bad or number
        elif bad:
            raise GalleryDamagedError(
                f"line {bad} of '{folder / LOG}' is damaged. 'person-search verify' names all "
                "damage, 'person-search compact' keeps everything else."
            )
        else:
            entries.append(entry)
            log_bytes, rows = end, max(rows, entry.first + entry.rows)
    return SegmentContents(entries, rows, log_bytes)


def map_rows(folder: Path, rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The first rows of a segment, memory mapped: vectors (N, D) and boxes (N, 5).

    Raises:
        GalleryDamagedError: there are fewer.
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
    """Looks whether mapped rows are still there; to read those that are not ends the process.

    Args:
        folder: of the segment. vectors, boxes: as :func:`map_rows` has returned them.

    Raises:
        GalleryDamagedError: a file has been cut off. One that was deleted lives as long as it is
            mapped, so that is no damage.
    """
    for name, mapped in ((VECTORS, vectors), (BOXES, boxes)):
        memory: object = mapped
        while isinstance(memory, np.ndarray):
            memory = memory.base
        # that of the mapped file, even if its name is gone or belongs to another one
        size = memory.size() if isinstance(memory, mmap) else mapped.nbytes
        if size < mapped.nbytes:
            width = mapped.shape[1] * FLOAT.itemsize
            raise _too_short(folder / name, size // width, len(mapped))


def _too_short(path: Path, there: int, rows: int) -> GalleryDamagedError:
    return GalleryDamagedError(
        f"'{path}' holds {there} persons where the log beside it names {rows}. "
        "'person-search compact' keeps the images that are complete."
    )


def count_rows(folder: Path, dim: int) -> tuple[int, int]:
    """Complete rows in the files of vectors and of boxes, whatever the log says."""
    sizes = [
        path.stat().st_size if path.exists() else 0 for path in (folder / VECTORS, folder / BOXES)
    ]
    return sizes[0] // (dim * FLOAT.itemsize), sizes[1] // (BOX_COLUMNS * FLOAT.itemsize)


def checksum(vectors: np.ndarray, boxes: np.ndarray) -> int:
    """CRC-32 of the rows of one image."""
    return zlib.crc32(boxes.astype(FLOAT).tobytes(), zlib.crc32(vectors.astype(FLOAT).tobytes()))


class SegmentWriter:
    """Appends images to a segment; a context manager that holds the segment's lock.

    Args:
        folder: of the segment; made if absent.
        dim: D.
        durable: wait for the disk after every image. False is faster and survives the end of the
            process all the same, but not the end of the machine.

    Raises:
        GalleryLockedError: another process has the segment open for writing.
        GalleryDamagedError: see :func:`read_segment`.
    """

    def __init__(self, folder: Path, dim: int, durable: bool = True) -> None:
        self.folder, self.dim, self.durable = folder, dim, durable
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK, f"the segment '{folder}'")
        self._lock.acquire()
        try:
            contents = read_segment(folder)
            map_rows(folder, contents.rows, dim)  # they are there
            self.rows, self._log_bytes = contents.rows, contents.log_bytes
            self._vectors = _open_at(folder / VECTORS, self.rows * dim * FLOAT.itemsize)
            self._boxes = _open_at(folder / BOXES, self.rows * BOX_COLUMNS * FLOAT.itemsize)
            self._log = _open_at(folder / LOG, contents.log_bytes)
            if durable:
                _sync_folder(folder)
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
        """Adds one image; when this returns, it is in the gallery.

        Args:
            entry: without rows and checksum, which are filled in.
            boxes: (n, 4). scores: (n,). reid_feats: (n, D) of unit length. All three or none.

        Raises:
            OSError: the disk is full, for example; the image is then not in the gallery.
        """
        rows = 0 if boxes is None else len(boxes)
        if boxes is not None and rows:
            if scores is None or reid_feats is None:
                raise ValueError("boxes come with scores and embeddings; one of them is absent.")
            vectors = np.ascontiguousarray(reid_feats, FLOAT)
            table = np.column_stack([boxes, scores]).astype(FLOAT)
            if vectors.shape != (rows, self.dim) or table.shape != (rows, BOX_COLUMNS):
                raise ValueError(
                    f"{rows} persons have embeddings of shape {vectors.shape}; the gallery takes "
                    f"({rows}, {self.dim})."
                )
            entry = replace(entry, first=self.rows, rows=rows, crc=checksum(vectors, table))
        line = entry.to_line()
        try:
            if rows:
                self._write(self._vectors, vectors.tobytes())
                self._write(self._boxes, table.tobytes())
                self._sync(self._vectors, self._boxes)
            self._write(self._log, line)
            self._sync(self._log)
        except OSError:
            self._cut_back()
            raise
        self.rows += rows
        self._log_bytes += len(line)
        return entry

    def sync(self) -> None:
        """Waits until everything is on the disk."""
        for handle in (self._vectors, self._boxes, self._log):
            os.fsync(handle)

    def close(self) -> None:
        """Closes the files and gives the lock back."""
        for handle in (self._vectors, self._boxes, self._log):
            os.close(handle)
        self._lock.release()

    def __enter__(self) -> "SegmentWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, handle: int, content: bytes) -> None:
        view = memoryview(content)
        while len(view):  # a write may take only a part
            view = view[os.write(handle, view) :]

    def _sync(self, *handles: int) -> None:
        for handle in handles if self.durable else ():
            os.fdatasync(handle)

    def _cut_back(self) -> None:
        """After a failed write: back to the last complete image."""
        sizes = {
            self._log: self._log_bytes,  # first, so that no line outlives its rows
            self._boxes: self.rows * BOX_COLUMNS * FLOAT.itemsize,
            self._vectors: self.rows * self.dim * FLOAT.itemsize,
        }
        for handle, size in sizes.items():
            os.ftruncate(handle, size)
            os.lseek(handle, size, os.SEEK_SET)


def _open_at(path: Path, size: int) -> int:
    """Opens a file for appending and cuts off what lies behind ``size`` bytes."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.ftruncate(handle, size)
    os.lseek(handle, size, os.SEEK_SET)
    return handle


def _sync_folder(folder: Path) -> None:
    """Forces the names of new files to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
