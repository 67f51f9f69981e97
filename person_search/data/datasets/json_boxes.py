# SPDX-License-Identifier: Apache-2.0
"""Whether the boxes of an annotation file can be what they are said to be.

Shape shorthand: I images, B annotations, Q queries. Boxes are x, y, width, height.
"""

import numpy as np

from person_search.data.datasets.common import IrregularityLog
from person_search.data.datasets.json_tables import CROWD, KEPT, OTHER_CATEGORY, AnnotationTables

_OVER_BORDER = 1.0
"""Pixels by which a box may reach over the border without being odd: some are 1-based."""

_FAR, _SWAPPED_SHARE = 0.05, 0.25
"""Corners in place of sizes are suspected if this share of the boxes reaches so far, as a part of
the image, over the border."""


def usable_boxes(tables: AnnotationTables) -> np.ndarray:
    """Returns (B,) bool: boxes with an area, of one person each."""
    return (tables.left_out == KEPT) & (tables.boxes[:, 2:] > 0).all(axis=1)


def box_faults(tables: AnnotationTables, sizes: np.ndarray) -> list[str]:
    """Returns one sentence per impossible box.

    Args:
        tables: of the file.
        sizes: (I, 2) height and width; images of unknown size (0) are passed over.
    """
    faults = _negative_sizes("annotations", tables.boxes)
    swapped = _corner_fault(tables, sizes)
    faults += [swapped] if swapped else []
    if not swapped:
        kept = tables.left_out == KEPT
        faults += _outside("annotations", tables.boxes, tables.box_image, kept, tables, sizes)
    boxes, images = tables.query_boxes, tables.query_image
    if boxes is not None and images is not None and not swapped:
        faults += [
            f"queries[{row}]: the box {_show(boxes[row])} has no area"
            for row in np.flatnonzero((boxes[:, 2:] == 0).any(axis=1))
        ]
        faults += _negative_sizes("queries", boxes)
        faults += _outside("queries", boxes, images, np.ones(len(boxes), bool), tables, sizes)
    return faults


def log_irregular_boxes(
    tables: AnnotationTables, sizes: np.ndarray, where: str, log: IrregularityLog
) -> None:
    """Collects left out, empty and overhanging boxes, persons twice in an image, empty images."""

    def place(row: int) -> str:
        return f"{where}: annotations[{row}], {tables.names[tables.box_image[row]]}"

    kinds = {CROWD: "crowd", OTHER_CATEGORY: "other_category"}
    for row in np.flatnonzero(np.isin(tables.left_out, list(kinds))).tolist():
        kind = kinds[int(tables.left_out[row])]
        log.add(kind, place(row), _show(tables.boxes[row]))
    kept = tables.left_out == KEPT
    usable = usable_boxes(tables)
    for row in np.flatnonzero(kept & ~usable).tolist():
        log.add("zero_size_box", place(row), _show(tables.boxes[row]))
    over = _overhang(tables.boxes, tables.box_image, sizes)
    for row in np.flatnonzero(usable & (over > _OVER_BORDER)).tolist():
        height, width = sizes[tables.box_image[row]]
        detail = f"{_show(tables.boxes[row])}, image {width} x {height} (width x height)"
        log.add("box_over_border", place(row), detail)
    for row in np.flatnonzero(_repeated(tables, usable)).tolist():
        log.add("twice_in_image", place(row), f"identity {tables.labels[row]}")
    empty = np.bincount(tables.box_image[usable], minlength=len(tables.names)) == 0
    for row in np.flatnonzero(empty).tolist():
        log.add("no_boxes", f"{where}: images[{row}], {tables.names[row]}", "no box with an area")


def _show(box: np.ndarray) -> str:
    return str([float(f"{value:.6g}") for value in box])


def _negative_sizes(section: str, boxes: np.ndarray) -> list[str]:
    faults = []
    for row in np.flatnonzero((boxes[:, 2:] < 0).any(axis=1)).tolist():
        faults.append(
            f"{section}[{row}]: the box {_show(boxes[row])} has a negative width or height; bbox "
            "is [x, y, width, height] with x, y the corner at the top left"
        )
    return faults


def _overhang(boxes: np.ndarray, image: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns (N,) pixels by which boxes reach over a border; 0 in images of unknown size."""
    whole = sizes[image][:, ::-1]
    over = np.maximum((boxes[:, :2] + boxes[:, 2:] - whole).max(axis=1), -boxes[:, :2].min(axis=1))
    return np.where(whole[:, 0] > 0, over, 0.0)


def _corner_fault(tables: AnnotationTables, sizes: np.ndarray) -> str | None:
    """Suspects corners (x1, y1, x2, y2): many boxes overhang, yet all would be valid as corners."""
    usable = usable_boxes(tables)
    boxes, image = tables.boxes[usable], tables.box_image[usable]
    known = sizes[image][:, 0] > 0
    boxes, image = boxes[known], image[known]
    if not len(boxes):
        return None
    whole = sizes[image][:, ::-1]
    over = (boxes[:, :2] + boxes[:, 2:] > (1 + _FAR) * whole).any(axis=1)
    inside = boxes[:, 2:] <= whole + _OVER_BORDER
    as_corners = (boxes[:, 2:] > boxes[:, :2]) & inside
    if over.mean() < _SWAPPED_SHARE or not as_corners.all():
        return None
    row = int(np.flatnonzero(usable)[known][over.argmax()])
    height, width = sizes[tables.box_image[row]]
    return (
        f"annotations: {over.sum()} of {len(boxes)} boxes reach far out of their images, none "
        f"would as corners (x1, y1, x2, y2), e.g. annotations[{row}] {_show(tables.boxes[row])} "
        f"in an image of {width} x {height} (width x height): bbox must be [x, y, width, height]"
    )


def _outside(
    section: str,
    boxes: np.ndarray,
    image: np.ndarray,
    kept: np.ndarray,
    tables: AnnotationTables,
    sizes: np.ndarray,
) -> list[str]:
    """Returns a sentence per box without any part in its image."""
    whole = sizes[image][:, ::-1]
    outside = (boxes[:, :2] >= whole) | (boxes[:, :2] + boxes[:, 2:] <= 0)
    outside = outside.any(axis=1) & kept & (whole[:, 0] > 0) & (boxes[:, 2:] > 0).all(axis=1)
    return [
        f"{section}[{row}]: the box {_show(boxes[row])} [x, y, width, height] lies outside the "
        f"image {tables.names[image[row]]} of {whole[row, 0]} x {whole[row, 1]} (width x height)"
        for row in np.flatnonzero(outside).tolist()
    ]


def _repeated(tables: AnnotationTables, usable: np.ndarray) -> np.ndarray:
    """Returns (B,) bool: labelled boxes whose person has an earlier one in the same image."""
    rows = np.flatnonzero(usable & (tables.labels >= 0))
    keys = tables.box_image[rows].astype(np.int64) * max(tables.num_pids, 1) + tables.labels[rows]
    _, first = np.unique(keys, return_index=True)
    repeated = np.zeros(len(usable), bool)
    repeated[rows] = True
    repeated[rows[first]] = False
    return repeated
