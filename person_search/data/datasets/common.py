# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the data set readers: folder layouts, irregularities, text files and boxes.

An *irregularity* is something odd that a reader copes with, such as a box without area. It is
logged, not raised; anything a reader cannot cope with raises ``ValueError``.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IRREGULARITY_KINDS = {
    "zero_size_box": "box without width or height; dropped",
    "box_outside": "box entirely outside the image; dropped",
    "box_clipped": "box exceeds the border of the image; clipped",
    "box_over_border": "box exceeds the border of the image; kept, the mapper clips it",
    "crowd": "annotation of a crowd (iscrowd), not of one person; left out",
    "other_category": "annotation of a category other than person; left out",
    "no_boxes": "image without any box; kept",
    "twice_in_image": "one person labeled twice in one image; both kept",
    "unmatched_label": "labeled box that is missing from the image's box list; label not used",
    "subset_box": "box of a subset that is not exactly one of its image; used as it is",
    "claimed_twice": "one box claimed by two persons; the first one keeps it",
    "listed_twice": "a gallery lists one image twice; kept as listed",
    "own_image": "a gallery contains the query's own image; kept as listed",
    "exif_turned": "image with an EXIF orientation; turned, boxes count in the turned image",
    "cmyk_image": "image in printing colors (CMYK); converted to RGB",
    "deep_image": "gray image of 16 bits; its upper 8 bits are used",
    "unreadable_image": "unreadable image header; size unknown (0)",
}
"""Every kind of irregularity and how the readers treat it."""

_logged: set[str] = set()


class IncompleteDatasetError(FileNotFoundError):
    """Files of a data set are missing."""


@dataclass(frozen=True)
class DatasetLayout:
    """Folder layout of a data set, for error messages and for finding the folder.

    Attributes:
        title: Name of the data set in prose.
        folders: Accepted names of the folder, the preferred one first.
        tree: Drawing of the expected files.
        advice: Where to obtain the data.
    """

    title: str
    folders: tuple[str, ...]
    tree: str
    advice: str

    def find(self, parent: str | Path) -> Path:
        """Returns the first accepted folder that exists in ``parent``, else the preferred one."""
        for name in self.folders:
            if (Path(parent) / name).is_dir():
                return Path(parent) / name
        return Path(parent) / self.folders[0]

    def missing(self, root: Path, first: Path, others: int = 0) -> IncompleteDatasetError:
        """Returns the error for missing files.

        Args:
            root: Folder of the data set.
            first: First missing file or folder.
            others: Number of further missing files, if known.
        """
        more = f" (and {others} more like it)" if others else ""
        state = "is incomplete" if root.is_dir() else "was not found"
        return IncompleteDatasetError(
            f"{self.title} {state}: {first} does not exist{more}.\n"
            f"Searched folder: {root}. Expected content:\n{self.tree}\n"
            f"What to do: {self.advice} Data sets lie in $DETECTRON2_DATASETS (default: datasets/) "
            f"under the name {' or '.join(self.folders)}; see datasets/README.md."
        )

    def require(self, root: Path, paths: Iterable[str]) -> None:
        """Raises ``IncompleteDatasetError`` for the first of ``paths`` that ``root`` lacks."""
        absent = [path for path in paths if not (root / path).exists()]
        if absent:
            raise self.missing(root, root / absent[0], len(absent) - 1)


@dataclass(frozen=True)
class Irregularity:
    """One irregularity.

    Attributes:
        kind: Key of ``IRREGULARITY_KINDS``.
        where: File and entry.
        detail: The values found there.
    """

    kind: str
    where: str
    detail: str


class IrregularityLog(list[Irregularity]):
    """Irregularities collected while a data set is read."""

    def add(self, kind: str, where: str, detail: str) -> None:
        """Appends one irregularity."""
        if kind not in IRREGULARITY_KINDS:
            raise ValueError(f"unknown irregularity {kind!r}; known: {sorted(IRREGULARITY_KINDS)}")
        self.append(Irregularity(kind, where, detail))

    def warn(self, logger: logging.Logger, title: str) -> None:
        """Logs one line per kind with the count and the first irregularity, once per process."""
        for kind, count in Counter(item.kind for item in self).items():
            first = next(item for item in self if item.kind == kind)
            message = (
                f"{title}: {count} x {IRREGULARITY_KINDS[kind]}; the first: {first.where}: "
                f"{first.detail}. tools/check_dataset.py lists all."
            )
            if message not in _logged:
                _logged.add(message)
                logger.warning(message)


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file, with or without a byte order mark.

    Raises:
        ValueError: If the file is in another encoding; names the file.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not a UTF-8 text file ({e}): save it as UTF-8") from e


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Converts (N, 4) left, top, width, height of any dtype to (N, 4) float64 XYXY.

    The conversion to float64 comes first: annotation files contain uint8, whose sum wraps at 256.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def pad_rows(rows: Sequence[np.ndarray | Sequence[int]]) -> np.ndarray:
    """Returns (n, longest) int32 of n rows of different lengths, padded with -1."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def check_split(split: str) -> None:
    """Raises ``ValueError`` unless ``split`` is ``train`` or ``test``."""
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; allowed: 'train', 'test'")
