# SPDX-License-Identifier: Apache-2.0
"""What the data set readers share: the missing-file error, the folder search and irregularities.

An *irregularity* is something odd that the reader copes with (a box without area, one person twice
in an image). It is collected, not raised; what cannot be coped with raises ``ValueError``.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode

from person_search.schema import PERSON_CATEGORY_ID

IRREGULARITY_KINDS = {
    "zero_size_box": "box without width or height; dropped",
    "box_outside": "box entirely outside the image; dropped",
    "box_clipped": "box reaches over the border of the image; clipped",
    "box_over_border": "box reaches over the border of the image; kept, the mapper clips it",
    "crowd": "annotation of a crowd (iscrowd), not of one person; left out",
    "other_category": "annotation of another category than person; left out",
    "no_boxes": "image without any box; kept",
    "twice_in_image": "one person labelled twice in one image; both kept",
    "unmatched_label": "labelled box that the image's box list does not hold; label not used",
    "subset_box": "box of a subset that is not exactly one of its image; used as it stands",
    "claimed_twice": "one box claimed by two persons; the first one keeps it",
    "listed_twice": "a gallery lists one image twice; kept as listed",
    "own_image": "a gallery holds the query's own image; kept as listed",
    "exif_turned": "image with an EXIF orientation; turned, boxes count in the turned image",
    "cmyk_image": "image in printing colors (CMYK); converted to RGB",
    "deep_image": "gray image of 16 bits; its upper 8 bits are used",
    "unreadable_image": "image header cannot be read; size unknown (0)",
}
"""Every kind of irregularity, and what the reader does about it."""


_logged: set[str] = set()


class IncompleteDatasetError(FileNotFoundError):
    """A data set whose files are missing or only partly there."""


@dataclass(frozen=True)
class DatasetLayout:
    """What the folder of a data set looks like, for messages and for finding it.

    Args:
        title: name as people write it.
        folders: accepted names of the folder, the preferred one first.
        tree: drawing of the expected files.
        advice: where the data comes from.
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
        """Returns the one error for missing files; the caller raises it.

        Args:
            root: folder of the data set.
            first: the first file or folder that is not there.
            others: how many more are missing, where that is known.
        """
        more = f" (and {others} more like it)" if others else ""
        state = "is only partly there" if root.is_dir() else "was not found"
        return IncompleteDatasetError(
            f"{self.title} {state}: {first} does not exist{more}.\n"
            f"Folder looked at: {root}. Expected in it:\n{self.tree}\n"
            f"What to do: {self.advice} Folders lie in $DETECTRON2_DATASETS (default: datasets/) "
            f"under the name {' or '.join(self.folders)}; see datasets/README.md."
        )

    def require(self, root: Path, paths: Iterable[str]) -> None:
        """Raises ``IncompleteDatasetError`` naming the first of ``paths`` absent from ``root``."""
        absent = [path for path in paths if not (root / path).exists()]
        if absent:
            raise self.missing(root, root / absent[0], len(absent) - 1)


@dataclass(frozen=True)
class Irregularity:
    """One oddity: its kind (see ``IRREGULARITY_KINDS``), where it stands and what is seen there."""

    kind: str
    where: str
    detail: str


class IrregularityLog(list[Irregularity]):
    """Collects irregularities while a data set is read."""

    def add(self, kind: str, where: str, detail: str) -> None:
        """Appends one irregularity."""
        if kind not in IRREGULARITY_KINDS:
            raise ValueError(f"unknown irregularity {kind!r}; known: {sorted(IRREGULARITY_KINDS)}")
        self.append(Irregularity(kind, where, detail))

    def warn(self, logger: logging.Logger, title: str) -> None:
        """Logs one line per kind: how many there are, and the first of them.

        A data set is read several times in a run; what was logged before is not logged again.
        """
        for kind, count in Counter(item.kind for item in self).items():
            first = next(item for item in self if item.kind == kind)
            message = (
                f"{title}: {count} x {IRREGULARITY_KINDS[kind]}; the first: {first.where}: "
                f"{first.detail}. tools/check_dataset.py lists all."
            )
            if message not in _logged:
                _logged.add(message)
                logger.warning(message)


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Converts (N, 4) left, top, width, height of any dtype to (N, 4) float64 XYXY.

    The cast comes first: annotation files hold uint8 numbers, whose sum wraps at 256.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def make_annotation(box: Sequence[float], person_id: int, **extra: object) -> dict:
    """Returns one entry of a record's ``annotations``; ``box`` is XYXY in pixels."""
    return {
        "bbox": [float(value) for value in box],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": PERSON_CATEGORY_ID,
        "person_id": int(person_id),
        **extra,
    }


def make_query(query_id: int, box: Sequence[float]) -> dict:
    """Returns one entry of a test record's ``queries``; ``box`` is XYXY in pixels."""
    return {
        "query_id": int(query_id),
        "bbox": [float(value) for value in box],
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def pad_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns (n, longest) int32 of n rows of different lengths, padded with -1."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def check_split(split: str) -> None:
    """Raises ``ValueError`` unless ``split`` is ``train`` or ``test``."""
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; allowed: 'train', 'test'")
