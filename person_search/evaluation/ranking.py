# SPDX-License-Identifier: Apache-2.0
"""The ranked lists behind the figures of an evaluation, and which of them to show.

Shape shorthand: Q queries of a protocol.
"""

from dataclasses import dataclass

import numpy as np

from person_search.evaluation import PooledPredictions, SearchOptions, SearchScores, rank_gallery
from person_search.schema import SearchProtocol


@dataclass(frozen=True)
class RankedEntry:
    """One entry of a query's ranked list.

    Args:
        rank: 1 is best.
        image_id: of the data set.
        box: XYXY pixels of the original image.
        sim: what the list is sorted by.
        verdict: ``match``: the evaluator takes it for the person, being the most similar of all
            boxes of its image that overlap the person enough; ``repeat``: another such box, which
            the evaluator counts as wrong; ``other``: anything else.
    """

    rank: int
    image_id: int
    box: tuple[float, float, float, float]
    sim: float
    verdict: str


def rank_query(
    predictions: PooledPredictions,
    protocol: SearchProtocol,
    query: int,
    options: SearchOptions | None = None,
) -> list[RankedEntry]:
    """The list by which :func:`person_search.evaluation.evaluate_search` scores a query.

    Args:
        predictions: pooled over the test set.
        protocol: of that test set.
        query: index into ``protocol.queries``.
        options: as in the evaluation, e.g. ``evaluator.settings.search``; None for the defaults.

    Returns:
        The whole list, best first; empty if the query has no embedding or its gallery no detection.
    """
    ranked = rank_gallery(predictions, protocol, query, options)
    if ranked is None:
        return []
    p = ranked.boxes
    images = np.searchsorted(p.det_offsets, ranked.dets, side="right") - 1
    verdicts = np.select([ranked.is_positive, ranked.overlaps], ["match", "repeat"], "other")
    return [
        RankedEntry(rank, image_id, tuple(box), sim, verdict)
        for rank, (image_id, box, sim, verdict) in enumerate(
            zip(
                p.image_ids[images].tolist(),
                p.boxes[ranked.dets].tolist(),
                ranked.sims.tolist(),
                verdicts.tolist(),
                strict=True,
            ),
            start=1,
        )
    ]


def choose_examples(scores: SearchScores) -> list[tuple[str, int]]:
    """Picks a success, a median and a failure, by rule and not by look.

    A success has the person in first place, a failure has not. Of each kind the median query by
    average precision is taken, and so of all queries: none of the three is an extreme.

    Returns:
        up to three of (``"success"`` | ``"median"`` | ``"failure"``, index of the query), without
        repetition; a kind that does not occur is left out.
    """
    by_ap = np.lexsort((np.arange(len(scores.ap)), -scores.ap))
    good = scores.best_rank[by_ap] == 1
    chosen: list[tuple[str, int]] = []
    for kind, candidates in (
        ("success", by_ap[good]),
        ("failure", by_ap[~good]),
        ("median", by_ap),
    ):
        free = [q for q in _from_the_middle(candidates) if q not in [c for _, c in chosen]]
        if free:
            chosen.append((kind, int(free[0])))
    order = ("success", "median", "failure")
    return sorted(chosen, key=lambda item: order.index(item[0]))


def _from_the_middle(items: np.ndarray) -> np.ndarray:
    """The middle item first, then its neighbors, going outwards."""
    distance = np.abs(np.arange(len(items)) - (len(items) - 1) // 2)
    return items[np.argsort(distance, kind="stable")]
