# SPDX-License-Identifier: Apache-2.0
"""Context bipartite graph matching (CBGM): the people around the query help to find it.

"Sequential End-to-end Network for Efficient Person Search", AAAI 2021, section on CBGM. Who walks
beside the query in its own image may walk beside it in the gallery image too. For the images of the
``k1`` most similar detections of a query:

1. The query and its companions, the first ``k2`` people of the query image, stand on one side of a
   complete bipartite graph, all detections of the gallery image on the other. The companions are
   the detections of the query image by falling score, without those that lie on the query itself
   (IoU above 0.5). The weight of an edge is the similarity.
2. A matching of maximum weight is found. If it pairs the query with detection j, the similarity of
   j becomes the largest weight of any matched pair (``max``), or the mean of that and its old
   similarity (``mean``, as PSTR does). Everything else keeps its similarity.

Shape shorthand: N detections of the gallery set, C people of the query image (C <= k2), D length of
the embedding, M detections of the images that are matched.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from person_search.evaluation.box_metrics import aligned_iou, expand_ranges
from person_search.evaluation.options import CbgmSettings
from person_search.evaluation.predictions import PooledPredictions
from person_search.schema import Query

SAME_PERSON_IOU = 0.5
"""A detection that overlaps the query box more is the query, not a companion."""


def companions(
    predictions: PooledPredictions, query: Query, image: int, k2: int, query_det: int | None = None
) -> np.ndarray:
    """Finds the people beside the query in its image.

    Args:
        predictions: of the whole test set.
        query: whose ``box`` is looked at.
        image: row of the query's image.
        k2: people that take part, the query included.
        query_det: the detection that stands for the query, if one does.

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
        predictions: of the whole test set.
        companion_feats: (C - 1, D), see :func:`companions`; the query itself comes with ``sims``.
        weights: (N,) factors of the similarities (confidence weighting), or None.
        settings: k1 and mode; k2 is in the number of companions.
    """

    def __init__(
        self,
        predictions: PooledPredictions,
        companion_feats: np.ndarray,
        weights: np.ndarray | None,
        settings: CbgmSettings,
    ) -> None:
        self._p = predictions
        self._companions = companion_feats.astype(np.float64)
        self._weights = weights
        self._settings = settings
        self._found: dict[int, tuple[int, np.float32] | None] = {}

    def rescore(self, sims: np.ndarray, gallery_dets: np.ndarray) -> np.ndarray:
        """Applies CBGM to the similarities of the query.

        Args:
            sims: (N,) float32 of the query to all detections; always the same for one matcher.
            gallery_dets: rows of the detections searched, in gallery order.

        Returns:
            (N,) a copy with the new similarities.
        """
        rescored = sims.copy()
        best = gallery_dets[first_highest(sims[gallery_dets], self._settings.k1)]
        images = np.unique(np.searchsorted(self._p.det_offsets, best, side="right") - 1)
        self._match([int(image) for image in images if int(image) not in self._found], sims)
        for image in images.tolist():
            found = self._found[image]
            if found is not None:
                det, value = found
                old = sims[det]
                rescored[det] = value if self._settings.mode == "max" else (value + old) / 2
        return rescored

    def _match(self, images: list[int], sims: np.ndarray) -> None:
        """Fills ``_found`` for images: the query's detection and the largest matched weight."""
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
        dets: (M,) names of the columns.

    Returns:
        the detection that the query is paired with and the largest weight of the matching; None if
        the query stays alone, which happens where there are more people than detections.
    """
    rows, columns = linear_sum_assignment(graph, maximize=True)
    if len(rows) == 0 or rows[0] != 0:  # the rows come sorted
        return None
    return int(dets[columns[0]]), graph[rows, columns].max()


def first_highest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` highest values, ascending; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    limit = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > limit)
    tied = np.flatnonzero(values == limit)[: count - len(above)]
    return np.sort(np.concatenate([above, tied]))
