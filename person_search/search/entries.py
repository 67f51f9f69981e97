# SPDX-License-Identifier: Apache-2.0
"""What a gallery knows of an image, a frame of a video, or the end of a video."""

import json
import zlib
from dataclasses import asdict, dataclass, replace

import numpy as np

FLOAT = np.dtype("<f4")
END_OF_VIDEO = -1
"""``Entry.frame`` of the line that marks a video as read to its end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log: an image, a frame of a video, or the end of a video.

    Attributes:
        run: Number of the run of ``index`` that wrote it; of two entries the later one counts.
        root: Index into the folders of the manifest.
        path: Path within that folder, with ``/``.
        size: File size in bytes.
        mtime_ns: Modification time of the file; with the size it reveals changes.
        frame: Index of the frame; None for an image; ``END_OF_VIDEO``.
        offset: Seconds of the frame from the start of the video.
        time: Seconds since 1970; None if unknown.
        camera: Camera name; "" if unknown.
        width: Width in pixels.
        height: Height in pixels.
        error: Why the file is unreadable; "" otherwise.
        removed: The file is gone or has changed; earlier lines of this file no longer count.
        every: Seconds between sampled frames, at the end of a video.
        first: First row of its persons.
        rows: Number of its persons.
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

    @property
    def is_shown(self) -> bool:
        """Whether this is an image or a frame that can be found."""
        return not self.error and (self.frame or 0) >= 0

    def to_line(self) -> bytes:
        """Returns the line of the log; fields with their default value are omitted."""
        fields = {k: v for k, v in asdict(self).items() if v != _DEFAULTS.get(k, _DEFAULTS)}
        text = json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)

    @classmethod
    def from_line(cls, line: bytes) -> "Entry | None":
        """Parses a line without its line feed; returns None if it is damaged."""
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


def checksum(vectors: np.ndarray, boxes: np.ndarray) -> int:
    """Returns the CRC-32 of the rows of one image."""
    return zlib.crc32(boxes.astype(FLOAT).tobytes(), zlib.crc32(vectors.astype(FLOAT).tobytes()))


def with_persons(
    entry: Entry,
    boxes: np.ndarray | None,
    scores: np.ndarray | None,
    reid_feats: np.ndarray | None,
    dim: int,
    first: int = 0,
) -> tuple[Entry, np.ndarray, np.ndarray]:
    """Adds the persons of an image to its entry.

    Args:
        entry: Entry of the image.
        boxes: Boxes (n, 4); None for an entry without persons.
        scores: Detection scores (n,), with boxes.
        reid_feats: Embeddings (n, D), with boxes.
        dim: D of the gallery.
        first: First row of the persons.

    Returns:
        The entry with rows and checksum, boxes and scores (n, 5), and embeddings (n, D), float32.

    Raises:
        ValueError: If the embeddings do not have the shape (n, D).
    """
    if boxes is None or not len(boxes):
        return entry, np.zeros((0, 5), FLOAT), np.zeros((0, dim), FLOAT)
    if scores is None or reid_feats is None:
        raise ValueError("boxes require scores and embeddings; one of them is missing.")
    count, vectors = len(boxes), np.ascontiguousarray(reid_feats, FLOAT)
    table = np.column_stack([boxes, scores]).astype(FLOAT)
    if vectors.shape != (count, dim) or table.shape != (count, 5):
        raise ValueError(
            f"{count} persons have embeddings of shape {vectors.shape}; the gallery expects "
            f"({count}, {dim})."
        )
    entry = replace(entry, first=first, rows=count, crc=checksum(vectors, table))
    return entry, table, vectors
