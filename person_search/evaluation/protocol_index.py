# SPDX-License-Identifier: Apache-2.0
"""A search protocol, checked against a data set and converted to row numbers of its arrays.

Shape shorthand: Q queries, X gallery images, E excluded images, G lists of excluded images,
P positives, S scored positives (one per query and image), H hits, I images, N detections.
"""

from dataclasses import dataclass

import numpy as np

from person_search.evaluation.box_metrics import (
    adaptive_iou_threshold,
    expand_ranges,
    overlapping_pairs,
)
from person_search.evaluation.predictions import find_rows
from person_search.schema import SearchProtocol

NO_IMAGE = -1
_ELEMENTS_AT_ONCE = 1 << 22
"""Numbers copied at once; 16 MB."""


@dataclass(frozen=True)
class CheckedProtocol:
    """A consistent protocol, with rows of the data set in place of image ids.

    Attributes:
        protocol: The protocol itself.
        gallery: (Q, X) image rows padded with -1, or None: all images but those in ``excluded``.
        excluded: (G, E) image rows padded with -1.
        excluded_row: (Q,) row of ``excluded`` of each query.
        positive_image: (P,) image rows.
    """

    protocol: SearchProtocol
    gallery: np.ndarray | None
    excluded: np.ndarray
    excluded_row: np.ndarray
    positive_image: np.ndarray


@dataclass(frozen=True)
class ProtocolIndex:
    """A protocol together with the detections that can be a positive.

    Attributes:
        checked: The protocol in rows of the data set.
        num_gt: (Q,) gallery images that show the person (see ``duplicates``).
        det_offsets: (I + 1,) offsets of the detections.
        hit_offsets: (Q + 1,) slices of the two arrays below.
        hit_positive: (H,) number of the scored positive, ascending.
        hit_det: (H,) a detection in its image that reaches the IoU threshold, ascending within a
            positive.
    """

    checked: CheckedProtocol
    num_gt: np.ndarray
    det_offsets: np.ndarray
    hit_offsets: np.ndarray
    hit_positive: np.ndarray
    hit_det: np.ndarray

    def hits_of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ``hit_positive`` and ``hit_det`` of one query."""
        hits = slice(self.hit_offsets[query], self.hit_offsets[query + 1])
        return self.hit_positive[hits], self.hit_det[hits]

    def gallery_detections(self, query: int) -> np.ndarray:
        """Returns the rows of the detections searched for one query, in gallery order, each once.

        An image listed twice is searched at its first position.
        """
        checked = self.checked
        if checked.gallery is None:
            keep = np.ones(self.det_offsets[-1], bool)
            keep[self._detections_of(checked.excluded[checked.excluded_row[query]])] = False
            return np.flatnonzero(keep)
        images = checked.gallery[query]
        images = images[images != NO_IMAGE]
        listing = np.arange(len(images))
        first = np.zeros(len(self.det_offsets) - 1, np.int64)
        first[images[::-1]] = listing[::-1]  # the earliest listing is written last
        return self._detections_of(images[first[images] == listing])

    def _detections_of(self, images: np.ndarray) -> np.ndarray:
        images = images[images != NO_IMAGE]
        starts = self.det_offsets[images]
        return expand_ranges(starts, self.det_offsets[images + 1] - starts)[1]


def index_protocol(
    checked: CheckedProtocol,
    det_boxes: np.ndarray,
    det_offsets: np.ndarray,
    duplicates: str,
    iou_rule: str,
    iou_thresh: float,
) -> ProtocolIndex:
    """Prepares a protocol for detections, whose similarities are not needed yet.

    Args:
        checked: Result of :func:`check_protocol`.
        det_boxes: (N, 4) XYXY.
        det_offsets: (I + 1,) offsets of the images' detections.
        duplicates: Rule for an image that is listed twice as a positive of one query: ``seqnet``
            counts it twice as ground truth and scores it once, against the first box; ``strict``
            takes it once.
        iou_rule: See :class:`~person_search.evaluation.settings.SearchOptions`.
        iou_thresh: See ``search_iou_thresh`` there.
    """
    protocol, positive_image = checked.protocol, checked.positive_image
    positive_query = np.asarray(protocol.positive_query, np.int64)
    num_queries = len(protocol.queries)
    # unique() returns the first occurrence and sorts by query, then image
    keys = positive_query * (len(det_offsets) - 1) + positive_image
    scored = np.unique(keys, return_index=True)[1]
    counted = positive_query if duplicates == "seqnet" else positive_query[scored]
    boxes = np.asarray(protocol.positive_box, np.float64).reshape(-1, 4)[scored]
    min_iou = adaptive_iou_threshold(boxes, iou_thresh) if iou_rule == "adaptive" else iou_thresh
    hit_positive, hit_det, _ = overlapping_pairs(
        boxes, positive_image[scored], min_iou, det_boxes, det_offsets
    )
    hits_per_query = np.bincount(positive_query[scored][hit_positive], minlength=num_queries)
    return ProtocolIndex(
        checked=checked,
        num_gt=np.bincount(counted, minlength=num_queries),
        det_offsets=det_offsets,
        hit_offsets=np.concatenate([[0], np.cumsum(hits_per_query)]),
        hit_positive=hit_positive,
        hit_det=hit_det,
    )


def check_protocol(protocol: SearchProtocol, image_ids: np.ndarray) -> CheckedProtocol:
    """Checks everything in a protocol that would otherwise become a wrong metric.

    Args:
        protocol: Protocol to check.
        image_ids: (I,) ids of the data set in its order.

    Raises:
        ValueError: If the protocol has no queries, arrays of the wrong length, a duplicate query
            id, an image that the data set lacks, or a positive outside its query's gallery.
    """
    where = f"protocol '{protocol.name}'"
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
    positive_query = np.asarray(protocol.positive_query, np.int64)
    if len(positive_query) and not (
        0 <= positive_query.min() <= positive_query.max() < num_queries
    ):
        raise ValueError(f"{where}: positive_query must lie in [0, {num_queries})")
    find_rows(image_ids, [q.image_id for q in protocol.queries], "image_id", where)
    gallery, excluded, row_of = None, np.zeros((num_queries, 0), np.int32), np.arange(num_queries)
    is_shared = False
    if protocol.gallery is not None:
        gallery = _to_rows(protocol.gallery, image_ids, where)
    elif np.size(protocol.excluded):
        excluded = _to_rows(protocol.excluded, image_ids, where)
        if protocol.excluded_row is not None:
            row_of, is_shared = np.asarray(protocol.excluded_row, np.int64), True
            if row_of.shape != (num_queries,):
                raise ValueError(
                    f"{where}: excluded_row has the shape {row_of.shape} for {num_queries} queries"
                )
            if not 0 <= row_of.min() <= row_of.max() < len(excluded):
                raise ValueError(f"{where}: excluded_row must lie in [0, {len(excluded)})")
    listed = excluded if gallery is None else gallery
    if len(listed) != num_queries and not is_shared:
        raise ValueError(f"{where}: {len(listed)} gallery rows for {num_queries} queries")
    positive_image = find_rows(image_ids, protocol.positive_image, "image_id", where)
    is_listed = _row_holds(listed, row_of[positive_query], positive_image)
    outside = np.flatnonzero(is_listed if gallery is None else ~is_listed)
    if len(outside):
        first = outside[0]
        query = protocol.queries[protocol.positive_query[first]]
        raise ValueError(
            f"{where}: {len(outside)} positives are outside the gallery of their query, first: "
            f"image_id {protocol.positive_image[first]} of query_id {query.query_id}"
        )
    return CheckedProtocol(protocol, gallery, excluded, row_of, positive_image)


def _to_rows(listed: np.ndarray, image_ids: np.ndarray, where: str) -> np.ndarray:
    """Converts (Q, X) image ids to int32 rows of the data set; the padding stays."""
    padding = len(image_ids)
    rows = find_rows(np.append(image_ids, NO_IMAGE), listed, "image_id", where, np.int32)
    rows[rows == padding] = NO_IMAGE
    return rows


def _row_holds(matrix: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns (P,) bool: whether ``values[p]`` occurs in ``matrix[rows[p]]``."""
    held = np.zeros(len(rows), bool)
    at_once = max(_ELEMENTS_AT_ONCE // max(matrix.shape[1], 1), 1)
    for first in range(0, len(rows), at_once):
        part = slice(first, first + at_once)
        held[part] = (matrix[rows[part]] == values[part, None]).any(axis=1)
    return held
