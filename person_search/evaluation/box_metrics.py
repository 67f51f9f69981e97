# SPDX-License-Identifier: Apache-2.0
"""Overlap of boxes: IoU, the threshold for small persons, and candidate pairs image by image.

Shape shorthand: N detections, M ground truth boxes, P pairs, I images.
All boxes are absolute XYXY pixels; an area is (x2 - x1) * (y2 - y1), without the "+ 1" of older
code. Everything is computed in float64, so that rounding does not decide about a threshold.
"""

from collections.abc import Iterator

import numpy as np

DEFAULT_IOU_THRESH = 0.5
SMALL_BOX_MARGIN = 10.0
MAX_PAIRS = 2_000_000
"""Maximum number of (box, detection) pairs in memory at once; about 200 MB."""


def aligned_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Computes the IoU of row i of one array with row i of the other.

    Args:
        boxes_a: (..., 4) XYXY.
        boxes_b: (..., 4) XYXY, of a shape that broadcasts with ``boxes_a``.

    Returns:
        (...) float64 IoU in [0, 1]; 0 where both boxes are empty.
    """
    a, b = np.asarray(boxes_a, np.float64), np.asarray(boxes_b, np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.prod(np.clip(sides, 0.0, None), axis=-1)
    union = box_area(a) + box_area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Computes the area of (..., 4) XYXY boxes in square pixels; 0 for an inverted box."""
    return np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0.0, None), axis=-1)


def adaptive_iou_threshold(boxes: np.ndarray, limit: float = DEFAULT_IOU_THRESH) -> np.ndarray:
    """Computes the minimum IoU of a match with each box, which is lower for small persons.

    ``min(limit, w * h / ((w + 10) * (h + 10)))``: a box that is off by five pixels on each side of
    a small person must still count. With a limit of 0.5 the threshold falls below about 24 x 24 or
    15 x 48 pixels; with a higher limit it falls for larger persons too.

    Args:
        boxes: (M, 4) XYXY ground truth.
        limit: Threshold of large persons.

    Returns:
        (M,) float64 thresholds in [0, limit].
    """
    sides = np.clip(np.asarray(boxes, np.float64)[:, 2:] - boxes[:, :2], 0.0, None)
    return np.minimum(limit, (sides / (sides + SMALL_BOX_MARGIN)).prod(axis=1))


def expand_ranges(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists the elements of many ranges, one range after the other.

    Args:
        starts: First element of each range.
        counts: Number of elements of each range, S in total.

    Returns:
        ``owner``: (S,) number of the range that the element belongs to; ``index``: (S,) the
        element, ``starts[owner]`` and up.
    """
    starts, counts = np.asarray(starts, np.int64), np.asarray(counts, np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return owner, np.repeat(starts, counts) + np.arange(len(owner)) - first


def overlapping_pairs(
    boxes: np.ndarray,
    box_image: np.ndarray,
    min_iou: np.ndarray | float,
    det_boxes: np.ndarray,
    det_offsets: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the detections that overlap each box enough, within the box's own image.

    Args:
        boxes: (M, 4) XYXY.
        box_image: (M,) index of the image of each box, in [0, I).
        min_iou: Minimum IoU of a pair, one number or (M,).
        det_boxes: (N, 4) XYXY; image i has the rows ``det_offsets[i]:det_offsets[i + 1]``.
        det_offsets: (I + 1,) int64.

    Returns:
        ``row`` (P,) index into ``boxes``, ``det`` (P,) index into ``det_boxes`` and ``iou`` (P,),
        sorted by (row, det). All are empty if there is no pair.
    """
    min_iou = np.broadcast_to(np.asarray(min_iou, np.float64), (len(boxes),))
    det_offsets = np.asarray(det_offsets)
    starts = det_offsets[box_image]
    counts = det_offsets[np.asarray(box_image) + 1] - starts
    found = []
    for first, last in _chunks(counts, MAX_PAIRS):
        owner, det = expand_ranges(starts[first:last], counts[first:last])
        row = owner + first
        iou = aligned_iou(boxes[row], det_boxes[det])
        keep = iou >= min_iou[row]
        found.append((row[keep], det[keep], iou[keep]))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    row, det, iou = (np.concatenate(column) for column in zip(*found, strict=True))
    return row, det, iou


def _chunks(counts: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Splits rows into runs whose counts add up to at most ``limit`` (more for a single row)."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + limit, side="right")), first + 1)
        yield first, last
        first = last


def first_of_each(group: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Picks one row per group: the smallest by the first key, then by the next key, and so on.

    Args:
        group: (P,) integers.
        *keys: (P,) arrays, the most important first.

    Returns:
        (G,) indices of the chosen rows, in ascending order of their group.
    """
    order = np.lexsort((*reversed(keys), group))
    return order[np.unique(group[order], return_index=True)[1]]
