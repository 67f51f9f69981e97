# SPDX-License-Identifier: Apache-2.0
"""A search protocol checked against a data set and turned into row numbers of its arrays.

Shape shorthand: Q queries, X gallery images, E excluded images, G lists of excluded images,
P positives, S scored positives (one per query and image), H hits, I images, N detections.
"""

from dataclasses import dataclass

import numpy as np

from person_search.evaluation.box_metrics import (
    DEFAULT_IOU_THRESH,
    adaptive_iou_threshold,
    expand_ranges,
    overlapping_pairs,
)
from person_search.evaluation.predictions import find_rows
from person_search.schema import SearchProtocol

NO_IMAGE = -1
_ELEMENTS_AT_ONCE = 1 << 22
"""Numbers that are copied at once; 16 MB."""


@dataclass(frozen=True)
class ProtocolIndex:
    """Row numbers instead of image ids, and which detections could be a positive.

    Args:
        name: of the protocol.
        num_gt: (Q,) gallery images that hold the person (see ``duplicates``).
        gallery: (Q, X) image rows padded with -1, or None: all images but those in ``excluded``.
        excluded: (G, E) image rows padded with -1.
        excluded_row: (Q,) row of ``excluded`` of each query.
        det_offsets: (I + 1,) of the detections.
        hit_offsets: (Q + 1,) slices of the two arrays below.
        hit_positive: (H,) number of the scored positive, ascending.
        hit_det: (H,) a detection in its image that reaches the adaptive IoU threshold, ascending
            within a positive.
    """

    name: str
    num_gt: np.ndarray
    gallery: np.ndarray | None
    excluded: np.ndarray
    excluded_row: np.ndarray
    det_offsets: np.ndarray
    hit_offsets: np.ndarray
    hit_positive: np.ndarray
    hit_det: np.ndarray

    def hits_of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """``hit_positive`` and ``hit_det`` of one query."""
        hits = slice(self.hit_offsets[query], self.hit_offsets[query + 1])
        return self.hit_positive[hits], self.hit_det[hits]

    def gallery_detections(self, query: int) -> np.ndarray:
        """Rows of the detections searched for one query, in gallery order, each once.

        An image listed twice is searched where it stands first.
        """
        num_images = len(self.det_offsets) - 1
        if self.gallery is None:
            keep = np.ones(self.det_offsets[-1], bool)
            keep[self._detections_of(self.excluded[self.excluded_row[query]])] = False
            return np.flatnonzero(keep)
        images = self.gallery[query]
        images = images[images != NO_IMAGE]
        listing = np.arange(len(images))
        first = np.zeros(num_images, np.int64)
        first[images[::-1]] = listing[::-1]  # the earliest listing is written last
        return self._detections_of(images[first[images] == listing])

    def _detections_of(self, images: np.ndarray) -> np.ndarray:
        images = images[images != NO_IMAGE]
        starts = self.det_offsets[images]
        return expand_ranges(starts, self.det_offsets[images + 1] - starts)[1]


def index_protocol(
    protocol: SearchProtocol,
    image_ids: np.ndarray,
    det_boxes: np.ndarray,
    det_offsets: np.ndarray,
    duplicates: str = "seqnet",
    *,
    iou_rule: str = "adaptive",
    iou_thresh: float = DEFAULT_IOU_THRESH,
    checked: "CheckedProtocol | None" = None,
) -> ProtocolIndex:
    """Prepares a protocol for detections; the similarities are not needed yet.

    Args:
        protocol: what to search, and where.
        image_ids: (I,) ids of the data set in its order.
        det_boxes: (N, 4) XYXY.
        det_offsets: (I + 1,).
        duplicates: one of ``seqnet``, ``strict``. An image listed twice as a positive of one
            query: ``seqnet`` counts it twice as ground truth and scores it once, against the first
            box; ``strict`` takes it once.
        iou_rule, iou_thresh: see :class:`~person_search.evaluation.options.SearchOptions`.
        checked: what :func:`check_protocol` gave, if it was called before.

    Raises:
        ValueError: the protocol contradicts itself or the data set, see :func:`check_protocol`.
    """
    checked = checked or check_protocol(protocol, image_ids)
    positive_image = checked.positive_image
    positive_query = np.asarray(protocol.positive_query, np.int64)
    num_queries = len(protocol.queries)
    # unique() returns the first occurrence and sorts by query, then image
    keys = positive_query * len(image_ids) + positive_image
    scored = np.unique(keys, return_index=True)[1]
    counted = positive_query if duplicates == "seqnet" else positive_query[scored]
    boxes = np.asarray(protocol.positive_box, np.float64).reshape(-1, 4)[scored]
    min_iou = adaptive_iou_threshold(boxes, iou_thresh) if iou_rule == "adaptive" else iou_thresh
    hit_positive, hit_det, _ = overlapping_pairs(
        boxes, positive_image[scored], min_iou, det_boxes, det_offsets
    )
    hits_per_query = np.bincount(positive_query[scored][hit_positive], minlength=num_queries)
    return ProtocolIndex(
        name=protocol.name,
        num_gt=np.bincount(counted, minlength=num_queries),
        gallery=checked.gallery,
        excluded=checked.excluded,
        excluded_row=checked.excluded_row,
        det_offsets=det_offsets,
        hit_offsets=np.concatenate([[0], np.cumsum(hits_per_query)]),
        hit_positive=hit_positive,
        hit_det=hit_det,
    )


@dataclass(frozen=True)
class CheckedProtocol:
    """A protocol without faults, with rows of the data set in place of image ids.

    Args:
        gallery, excluded, excluded_row: see :class:`ProtocolIndex`.
        positive_image: (P,) image rows.
    """

    gallery: np.ndarray | None
    excluded: np.ndarray
    excluded_row: np.ndarray
    positive_image: np.ndarray


def check_protocol(protocol: SearchProtocol, image_ids: np.ndarray) -> CheckedProtocol:
    """Checks what a wrong protocol would otherwise turn into a wrong figure.

    Raises:
        ValueError: no queries, arrays of the wrong length, a query id used twice, an image that the
            data set lacks, or a positive outside its query's gallery.
    """
    where = f"protocol '{protocol.name}'"
    _check_queries_and_lengths(protocol, where)
    find_rows(image_ids, np.array([q.image_id for q in protocol.queries]), "image_id", where)
    num_queries = len(protocol.queries)
    gallery, excluded, row_of = None, np.zeros((num_queries, 0), np.int32), np.arange(num_queries)
    if protocol.gallery is not None:
        gallery = _to_rows(protocol.gallery, image_ids, where)
    elif np.size(protocol.excluded):
        excluded = _to_rows(protocol.excluded, image_ids, where)
        if protocol.excluded_row is not None:
            row_of = _check_excluded_row(protocol, where)
    listed = excluded if gallery is None else gallery
    is_shared = gallery is None and protocol.excluded_row is not None
    if len(listed) != num_queries and not is_shared:
        raise ValueError(f"{where}: {len(listed)} gallery rows for {num_queries} queries")
    positive_image = find_rows(image_ids, protocol.positive_image, "image_id", where)
    positive_query = np.asarray(protocol.positive_query, np.int64)
    is_listed = _row_holds(listed, row_of[positive_query], positive_image)
    outside = np.flatnonzero(is_listed if gallery is None else ~is_listed)
    if len(outside):
        first = outside[0]
        query = protocol.queries[protocol.positive_query[first]]
        raise ValueError(
            f"{where}: {len(outside)} positives lie outside the gallery of their query, first: "
            f"image_id {protocol.positive_image[first]} of query_id {query.query_id}"
        )
    return CheckedProtocol(gallery, excluded, row_of, positive_image)


def _check_excluded_row(protocol: SearchProtocol, where: str) -> np.ndarray:
    rows = np.asarray(protocol.excluded_row, np.int64)
    if rows.shape != (len(protocol.queries),):
        raise ValueError(
            f"{where}: excluded_row has the shape {rows.shape} for {len(protocol.queries)} queries"
        )
    if not (0 <= rows.min() and rows.max() < len(protocol.excluded)):
        raise ValueError(f"{where}: excluded_row must lie in [0, {len(protocol.excluded)})")
    return rows


def _check_queries_and_lengths(protocol: SearchProtocol, where: str) -> None:
    num_queries = len(protocol.queries)
    if num_queries == 0:
        raise ValueError(f"{where} has no queries")
    ids, times = np.unique([q.query_id for q in protocol.queries], return_counts=True)
    if (times > 1).any():
        raise ValueError(f"{where}: query_id {ids[times > 1][:5].tolist()} is used more than once")
    names = ("positive_query", "positive_image", "positive_box")
    lengths = [len(getattr(protocol, name)) for name in names]
    if len(set(lengths)) > 1:
        raise ValueError(f"{where}: {', '.join(names)} have lengths {lengths}; must be equal")
    index = np.asarray(protocol.positive_query)
    if len(index) and not (0 <= index.min() and index.max() < num_queries):
        raise ValueError(f"{where}: positive_query must lie in [0, {num_queries})")


def _to_rows(listed: np.ndarray, image_ids: np.ndarray, where: str) -> np.ndarray:
    """Turns (Q, X) image ids into int32 rows of the data set; the padding stays."""
    padding = len(image_ids)
    rows = find_rows(np.append(image_ids, NO_IMAGE), listed, "image_id", where, np.int32)
    rows[rows == padding] = NO_IMAGE
    return rows


def _row_holds(matrix: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(P,) bool: whether ``values[p]`` stands in ``matrix[rows[p]]``."""
    held = np.zeros(len(rows), bool)
    at_once = max(_ELEMENTS_AT_ONCE // max(matrix.shape[1], 1), 1)
    for first in range(0, len(rows), at_once):
        part = slice(first, first + at_once)
        held[part] = (matrix[rows[part]] == values[part, None]).any(axis=1)
    return held
