# SPDX-License-Identifier: Apache-2.0
"""Context bipartite graph matching (CBGM): persons near the query help to find it.

"Sequential End-to-end Network for Efficient Person Search", AAAI 2021, section on CBGM. Persons
near the query in its own image may also be near it in the gallery image. For the images of the
``k1`` most similar detections of a query:

1. The query and its companions, ``k2`` persons of the query image in total, form one side of a
   complete bipartite graph, all detections of the gallery image the other. The companions are the
   detections of the query image by falling score, without those on the query itself (IoU above
   0.5). The weight of an edge is the similarity.
2. A matching of maximum weight is found. If it pairs the query with detection j, the similarity of
   j becomes the largest weight of any matched pair (``max``), or the mean of that and its old
   similarity (``mean``, as in PSTR). All other similarities stay.

Shape shorthand: N detections of the gallery set, C persons of the query image (C <= k2), D length
of the embedding, M detections of the images that are matched.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from person_search.evaluation.box_metrics import aligned_iou, expand_ranges
from person_search.evaluation.predictions import PooledPredictions
from person_search.evaluation.settings import SearchOptions
from person_search.schema import Query

SAME_PERSON_IOU = 0.5
"""A detection that overlaps the query box more than this is the query, not a companion."""


def companions(
    predictions: PooledPredictions, query: Query, image: int, k2: int, query_det: int | None = None
) -> np.ndarray:
    """Finds the other persons in the query image.

    Args:
        predictions: Predictions for the whole test set.
        query: Query with its box.
        image: Row of the query image.
        k2: Number of persons that take part, the query included.
        query_det: Detection that represents the query, if one does.

    Returns:
        (C - 1,) rows of detections, by falling score; equal scores in the order of the image.
    """
    rows = np.arange(predictions.det_offsets[image], predictions.det_offsets[image + 1])
    overlap = aligned_iou(np.array(query.box), predictions.boxes[rows])
    rows = rows[(overlap <= SAME_PERSON_IOU) & (rows != query_det)]
    return rows[np.argsort(-predictions.scores[rows], kind="stable")][: k2 - 1]


class ContextMatcher:
    """Re-scores the galleries of one query; an image that several protocols share is matched once.

    Args:
        predictions: Predictions for the whole test set.
        companion_feats: (C - 1, D) embeddings, see :func:`companions`; the query itself comes with
            ``sims``.
        weights: (N,) factors of the similarities (confidence weighting), or None.
        options: Options with ``cbgm_k1`` and ``cbgm_mode``.
    """

    def __init__(
        self,
        predictions: PooledPredictions,
        companion_feats: np.ndarray,
        weights: np.ndarray | None,
        options: SearchOptions,
    ) -> None:
        self._p = predictions
        self._companions = companion_feats.astype(np.float64)
        self._weights = weights
        self._options = options
        self._found: dict[int, tuple[int, np.float32] | None] = {}

    def rescore(self, sims: np.ndarray, gallery_dets: np.ndarray) -> np.ndarray:
        """Applies CBGM to the similarities of the query.

        Args:
            sims: (N,) float32 similarities of the query to all detections; always the same for one
                matcher.
            gallery_dets: Rows of the searched detections, in gallery order.

        Returns:
            (N,) copy with the new similarities.
        """
        rescored = sims.copy()
        best = gallery_dets[first_highest(sims[gallery_dets], self._options.cbgm_k1)]
        images = np.unique(np.searchsorted(self._p.det_offsets, best, side="right") - 1)
        self._match([int(image) for image in images if int(image) not in self._found], sims)
        for image in images.tolist():
            found = self._found[image]
            if found is not None:
                det, value = found
                old = sims[det]
                rescored[det] = value if self._options.cbgm_mode == "max" else (value + old) / 2
        return rescored

    def _match(self, images: list[int], sims: np.ndarray) -> None:
        """Stores the query's detection and the largest matched weight of each image."""
        if not images:
            return
        starts = self._p.det_offsets[images]
        counts = self._p.det_offsets[np.array(images) + 1] - starts
        _, dets = expand_ranges(starts, counts)
        products = self._companions @ self._p.reid_feats[dets].astype(np.float64).T
        if self._weights is not None:
            products = products * self._weights[dets]
        graph = np.concatenate([sims[None, dets], products.astype(np.float32)])
        last = 0
        for image, count in zip(images, counts.tolist(), strict=True):
            columns = slice(last, last + count)
            self._found[image] = match_query(graph[:, columns], dets[columns])
            last += count


def match_query(graph: np.ndarray, dets: np.ndarray) -> tuple[int, np.float32] | None:
    """Solves one graph.

    Args:
        graph: (C, M) weights, the query's in row 0.
        dets: (M,) detections of the columns.

    Returns:
        The detection paired with the query and the largest weight of the matching; None if the
        query is unmatched, which is possible with more persons than detections.
    """
    rows, columns = linear_sum_assignment(graph, maximize=True)
    if len(rows) == 0 or rows[0] != 0:  # the rows are sorted
        return None
    return int(dets[columns[0]]), graph[rows, columns].max()


def first_highest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the ``count`` highest values, ascending; of equal values the first."""
    if len(values) <= count:
        return np.arange(len(values))
    limit = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > limit)
    tied = np.flatnonzero(values == limit)[: count - len(above)]
    return np.sort(np.concatenate([above, tied]))
