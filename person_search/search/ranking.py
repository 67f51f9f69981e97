# SPDX-License-Identifier: Apache-2.0
"""The ranked lists behind the figures of an evaluation, and which of them to show.

Shape shorthand: Q queries of a protocol.
"""

from dataclasses import dataclass

import numpy as np

from person_search.evaluation import PooledPredictions, SearchScores
from person_search.evaluation.protocol_index import index_protocol
from person_search.evaluation.search_metrics import query_embeddings, similarity_blocks
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
    *,
    similarity: str = "cosine",
    duplicates: str = "seqnet",
    query_source: str = "gt_box",
) -> list[RankedEntry]:
    """Ranks the gallery of one query as :func:`person_search.evaluation.evaluate_search` does.

    Args:
        predictions: pooled over the test set.
        protocol: of that test set.
        query: index into ``protocol.queries``.
        similarity, duplicates, query_source: as in the evaluation.

    Returns:
        The whole list, best first; empty if the query has no embedding or its gallery no detection.
    """
    p = predictions
    index = index_protocol(protocol, p.image_ids, p.boxes, p.det_offsets, duplicates)
    feats, has_feat, _ = query_embeddings(p, [protocol.queries[query]], query_source)
    if not has_feat[0]:
        return []
    weights = p.scores if similarity == "cws" else None
    ((_, sims),) = similarity_blocks(feats, p.reid_feats, weights)
    sims = sims[0]
    dets = index.gallery_detections(query)
    dets = dets[np.argsort(-sims[dets], kind="stable")]
    hits = slice(index.hit_offsets[query], index.hit_offsets[query + 1])
    positive_of = dict(zip(index.hit_det[hits], index.hit_positive[hits], strict=True))
    images = np.searchsorted(p.det_offsets, dets, side="right") - 1
    entries, taken = [], set()
    for rank, (det, image) in enumerate(zip(dets, images, strict=True), 1):
        positive = positive_of.get(det)
        verdict = "other" if positive is None else "repeat" if positive in taken else "match"
        taken.add(positive)
        entries.append(
            RankedEntry(
                rank,
                int(p.image_ids[image]),
                tuple(float(v) for v in p.boxes[det]),
                float(sims[det]),
                verdict,
            )
        )
    return entries


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
