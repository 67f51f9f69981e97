# SPDX-License-Identifier: Apache-2.0
"""The ranked lists behind the metrics of an evaluation, and a rule for picking examples."""

from dataclasses import dataclass

import numpy as np

from person_search.evaluation.predictions import PooledPredictions
from person_search.evaluation.search_metrics import SearchScores, each_search
from person_search.evaluation.settings import SearchOptions
from person_search.schema import SearchProtocol


@dataclass(frozen=True)
class RankedEntry:
    """One entry of a query's ranked list.

    Attributes:
        rank: Position in the list; 1 is the best.
        image_id: Image of the data set.
        box: XYXY in pixels of the original image.
        sim: Similarity by which the list is sorted, re-scored where the options ask for it.
        verdict: ``match``: the positive, which is the most similar of all boxes of its image that
            overlap the person enough; ``repeat``: another such box, which counts as wrong;
            ``other``: any other box.
    """

    rank: int
    image_id: int
    box: tuple[float, float, float, float]
    sim: float
    verdict: str


def rank_gallery(
    predictions: PooledPredictions,
    protocol: SearchProtocol,
    query: int,
    options: SearchOptions | None = None,
) -> list[RankedEntry]:
    """Returns the ranked list by which :func:`~person_search.evaluation.evaluate_search` scores.

    Args:
        predictions: Predictions for the whole test set.
        protocol: Protocol of that test set.
        query: Index into ``protocol.queries``.
        options: Options of the evaluation, e.g. ``evaluator.settings``; None for the defaults.

    Returns:
        The whole list, best first; empty if the query has no embedding (``best_det`` and no
        detection in the query image) or its gallery has no detection.
    """
    options = options or SearchOptions()
    p = predictions.on_gt_boxes() if options.gallery_boxes == "gt" else predictions
    search = next(each_search(p, protocol.of_query(query), options), None)
    if search is None:
        return []
    dets = search.gallery_dets
    dets = dets[np.argsort(-search.sims[dets], kind="stable")]
    is_positive = np.isin(dets, search.positive_dets())
    overlaps = np.isin(dets, search.index.hits_of(search.query)[1])
    verdicts = np.select([is_positive, overlaps], ["match", "repeat"], "other").tolist()
    images = p.image_ids[np.searchsorted(p.det_offsets, dets, side="right") - 1].tolist()
    columns = (images, p.boxes[dets].tolist(), search.sims[dets].tolist(), verdicts)
    return [
        RankedEntry(rank, image_id, tuple(box), sim, verdict)
        for rank, (image_id, box, sim, verdict) in enumerate(zip(*columns, strict=True), start=1)
    ]


def choose_examples(scores: SearchScores) -> list[tuple[str, int]]:
    """Picks a success, a median and a failure by rule.

    A success has the person at rank 1, a failure has not. The median query by average precision is
    taken of each kind and of all queries, so that none of the three is an extreme.

    Returns:
        Up to three of (``"success"`` | ``"median"`` | ``"failure"``, index of the query), without
        repetition. A kind that does not occur is left out.
    """
    by_ap = np.lexsort((np.arange(len(scores.ap)), -scores.ap))
    good = scores.best_rank[by_ap] == 1
    chosen: dict[str, int] = {}
    for kind, queries in (("success", by_ap[good]), ("failure", by_ap[~good]), ("median", by_ap)):
        # the middle one first, then its neighbors outwards
        distance = np.abs(np.arange(len(queries)) - (len(queries) - 1) // 2)
        outwards = queries[np.argsort(distance, kind="stable")].tolist()
        free = [query for query in outwards if query not in chosen.values()]
        if free:
            chosen[kind] = free[0]
    return [(kind, chosen[kind]) for kind in ("success", "median", "failure") if kind in chosen]
