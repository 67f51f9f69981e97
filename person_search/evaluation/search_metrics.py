# SPDX-License-Identifier: Apache-2.0
"""Search figures: mAP, top-k and recall of ranked gallery detections, for any protocol.

Shape shorthand: Q queries of a protocol, N detections, G entries of one ranked list, K positives
found for one query.

Rules, for one query (those of SeqNet's evaluation, which the field compares by):

* The entries of the ranked list are the *detections* of all gallery images.
* In a gallery image that holds the person, the entry of highest similarity among those with
  IoU >= :func:`~person_search.evaluation.box_metrics.adaptive_iou_threshold` is the positive (with
  the rule ``fixed``: among those with IoU >= the threshold itself). All other entries of that image
  are negatives, also a second box on the same person.
* ``AP = (1 / num_gt) * sum over positives p of positives(sim >= s_p) / entries(sim >= s_p)`` with
  ``num_gt`` the gallery images that hold the person, found or not. This is the average precision
  of the list times the recall.
* top-k: one of the first k entries is a positive.
* A query whose gallery does not hold the person, or without an embedding, scores 0 everywhere.

Ties. Entries are ranked by (-similarity, place of the image in the gallery, place of the detection
in the image). The same order decides which of two equally similar entries is the positive, and
top-k. AP takes equal similarities as one step of the curve, so it does not depend on that order.
Dot products are summed up in float64 and then rounded to float32: equal embeddings give equal
similarities on every machine and in blocks of every size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from person_search.evaluation.box_metrics import first_of_each
from person_search.evaluation.cbgm import ContextMatcher, companions
from person_search.evaluation.detection_metrics import precision_steps
from person_search.evaluation.options import SearchOptions
from person_search.evaluation.predictions import PooledPredictions
from person_search.evaluation.protocol_index import (
    CheckedProtocol,
    ProtocolIndex,
    check_protocol,
    index_protocol,
)
from person_search.evaluation.similarities import query_embeddings, weighted_blocks
from person_search.schema import SearchProtocol


@dataclass(frozen=True)
class SearchScores:
    """What a protocol gave, query by query.

    Args:
        query_ids: (Q,).
        ap: (Q,) in [0, 1].
        best_rank: (Q,) int64, rank of the first positive from 1 on; 0 where none was found.
        recall: (Q,) images with a positive / ``num_gt``; 0 where ``num_gt`` is 0.
        num_gt: (Q,) gallery images that hold the person.
        has_feat: (Q,) bool; False only with ``best_det`` for a query image without detections.
        precisions: per query (K,), the precision at each positive from the most similar down; the
            k-th stands at recall k / ``num_gt``, and AP is their sum / ``num_gt``.
        name: of the protocol.
    """

    query_ids: np.ndarray
    ap: np.ndarray
    best_rank: np.ndarray
    recall: np.ndarray
    num_gt: np.ndarray
    has_feat: np.ndarray
    precisions: list[np.ndarray] = field(default_factory=list)
    name: str = ""

    def summary(self, topk: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """Means over all queries in percent: ``mAP``, ``top<k>`` for each k, ``recall``."""
        found = self.best_rank > 0
        figures = {"mAP": self.ap.mean()}
        figures.update({f"top{k}": (found & (self.best_rank <= k)).mean() for k in topk})
        figures["recall"] = self.recall.mean()
        return {name: 100.0 * float(value) for name, value in figures.items()}


def evaluate_search(
    predictions: PooledPredictions, protocols: Sequence[SearchProtocol], **options: Any
) -> list[SearchScores]:
    """Ranks the gallery of every query of every protocol.

    Args:
        predictions: pooled over the whole test set; the similarity is the plain dot product, so a
            query embedding may have any length (except with CBGM, where companions stand beside
            it) but gallery embeddings must be normalized.
        protocols: of that test set.
        options: of :class:`~person_search.evaluation.options.SearchOptions`.

    Raises:
        ValueError: an unknown option, a query without an embedding, an inconsistent protocol.
    """
    chosen = SearchOptions(**options)
    return evaluate_searches(predictions, [(protocol, chosen) for protocol in protocols])


def evaluate_searches(
    predictions: PooledPredictions, jobs: Sequence[tuple[SearchProtocol, SearchOptions]]
) -> list[SearchScores]:
    """Ranks galleries under several protocols and options.

    A query that several jobs share is compared with the gallery once. Arguments and errors as for
    :func:`evaluate_search`; one result per job.
    """
    results: dict[int, SearchScores] = {}
    for boxes in ("det", "gt"):
        numbers = [n for n, (_, options) in enumerate(jobs) if options.gallery_boxes == boxes]
        if numbers:
            pool = predictions if boxes == "det" else predictions.on_gt_boxes()
            scores = _Ranking(pool, [jobs[n] for n in numbers]).run()
            results.update(zip(numbers, scores, strict=True))
    return [results[number] for number in range(len(jobs))]


@dataclass(frozen=True)
class RankedGallery:
    """The ranked list of one query, as the figures are computed from it.

    Args:
        boxes: what was searched: the predictions, with the true boxes in place of the detections
            where the options say so.
        dets: (G,) rows of ``boxes``, best first.
        sims: (G,) what they are ranked by, re-scored where the options say so.
        is_positive: (G,) bool.
        overlaps: (G,) bool: whether it reaches the IoU threshold; all positives do.
        num_gt: gallery images that hold the person.
    """

    boxes: PooledPredictions
    dets: np.ndarray
    sims: np.ndarray
    is_positive: np.ndarray
    overlaps: np.ndarray
    num_gt: int


def rank_gallery(
    predictions: PooledPredictions,
    protocol: SearchProtocol,
    query: int,
    options: SearchOptions | None = None,
) -> RankedGallery | None:
    """The ranked list of one query, made by the code that computes the figures.

    Args:
        predictions, protocol: see :func:`evaluate_search`.
        query: index into ``protocol.queries``.
        options: None for the defaults.

    Returns:
        The whole list, which is empty if there is no detection in the gallery; None if the query
        has no embedding (``best_det`` and no detection in the query image).
    """
    options = options or SearchOptions()
    p = predictions.on_gt_boxes() if options.gallery_boxes == "gt" else predictions
    search = next(each_search(p, protocol.of_query(query), options), None)
    if search is None:
        return None
    order = np.argsort(-search.sims[search.gallery_dets], kind="stable")
    dets = search.gallery_dets[order]
    return RankedGallery(
        boxes=p,
        dets=dets,
        sims=search.sims[dets],
        is_positive=np.isin(dets, search.positive_dets()),
        overlaps=np.isin(dets, search.hits[1]),
        num_gt=int(search.index.num_gt[search.query]),
    )


def each_search(
    boxes: PooledPredictions, protocol: SearchProtocol, options: SearchOptions
) -> Iterator["Search"]:
    """The searches of a protocol, ranked as for the figures.

    Those that cannot find the person are among them, those of queries without an embedding are not.

    Args:
        boxes: what is searched; with ``gallery_boxes`` ``gt`` the true boxes, in place of the
            detections.
    """
    return _Ranking(boxes, [(protocol, options)]).searches(include_unmatched=True)


@dataclass(frozen=True)
class Search:
    """One query under one protocol and one set of options, ready to be ranked.

    Args:
        index: of the protocol.
        query: its number there.
        sims: (N,) similarities of all detections, re-scored where the options say so.
        gallery_dets: rows of the detections searched, in gallery order.
        out: where the figures of the query go.
    """

    index: ProtocolIndex
    query: int
    sims: np.ndarray
    gallery_dets: np.ndarray
    out: SearchScores

    @property
    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`ProtocolIndex.hits_of`."""
        return self.index.hits_of(self.query)

    def positive_dets(self) -> np.ndarray:
        """The first hit of each image in the order of the ranked list."""
        hit_positive, hit_det = self.hits
        return hit_det[first_of_each(hit_positive, -self.sims[hit_det], hit_det)]

    def score(self) -> None:
        """Fills the row of the query in ``out``; there must be a hit."""
        positive_dets, out, query = self.positive_dets(), self.out, self.query
        gallery_sims, positive_sims = self.sims[self.gallery_dets], self.sims[positive_dets]
        num_gt = int(self.index.num_gt[query])
        out.precisions[query] = precision_steps(gallery_sims, positive_sims)
        out.ap[query] = out.precisions[query].sum() / num_gt
        out.recall[query] = len(positive_dets) / num_gt
        best = positive_sims.max()
        tied = self.gallery_dets[gallery_sims == best]
        tied_before = int(np.isin(tied, positive_dets).argmax())
        out.best_rank[query] = np.count_nonzero(gallery_sims > best) + tied_before + 1


class _Ranking:
    """All searches in one set of gallery boxes."""

    def __init__(
        self, predictions: PooledPredictions, jobs: Sequence[tuple[SearchProtocol, SearchOptions]]
    ) -> None:
        self._p = p = predictions
        self._queries = list({q.query_id: q for pr, _ in jobs for q in pr.queries}.values())
        slot_of = {query.query_id: slot for slot, query in enumerate(self._queries)}
        self._feats = {
            source: query_embeddings(p, self._queries, source)
            for source in dict.fromkeys(options.query_source for _, options in jobs)
        }
        checked: dict[int, CheckedProtocol] = {}
        indices: dict[tuple, ProtocolIndex] = {}
        # per protocol: the query in every slot (or -1), and what to compute for it
        self._plan: dict[int, tuple[np.ndarray, list]] = {}
        self._scores = []
        for protocol, options in jobs:
            if id(protocol) not in checked:
                checked[id(protocol)] = check_protocol(protocol, p.image_ids)
            key = (id(protocol), options.duplicates, options.iou_rule, options.iou_thresh)
            if key not in indices:
                indices[key] = index_protocol(
                    protocol, p.image_ids, p.boxes, p.det_offsets, options.duplicates,
                    iou_rule=options.iou_rule, iou_thresh=options.iou_thresh,
                    checked=checked[id(protocol)],
                )  # fmt: skip
            slots = np.array([slot_of[q.query_id] for q in protocol.queries])
            if id(protocol) not in self._plan:
                number_in_slot = np.full(len(self._queries), -1)
                number_in_slot[slots] = np.arange(len(slots))
                self._plan[id(protocol)] = (number_in_slot, [])
            has_feat = self._feats[options.query_source][1][slots]
            scores = _empty_scores(protocol, indices[key], has_feat)
            self._plan[id(protocol)][1].append((indices[key], options, scores))
            self._scores.append(scores)
        self._kinds = list(dict.fromkeys((o.query_source, o.similarity) for _, o in jobs))

    def run(self) -> list[SearchScores]:
        for search in self.searches():
            search.score()
        return self._scores

    def searches(self, include_unmatched: bool = False) -> Iterator[Search]:
        """All searches of queries that have an embedding.

        Args:
            include_unmatched: also those that cannot find the person because no detection overlaps it.
        """
        for first, sims in self._blocks():
            for row in range(len(next(iter(sims.values())))):
                own = {kind: block[row] for kind, block in sims.items()}
                yield from self._searches_of(first + row, own, include_unmatched)

    def _blocks(self) -> Iterator[tuple[int, dict[tuple[str, str], np.ndarray]]]:
        """Similarities of some queries at a time, for each (query source, similarity)."""
        streams = []
        for source, (feats, _, _) in self._feats.items():
            kinds = [kind for kind in self._kinds if kind[0] == source]
            weights = {kind: self._weights(kind[1]) for kind in kinds}
            streams.append(weighted_blocks(feats, self._p.reid_feats, weights, len(self._kinds)))
        for blocks in zip(*streams, strict=True):
            yield blocks[0][0], {kind: sims for _, part in blocks for kind, sims in part.items()}

    def _weights(self, similarity: str) -> np.ndarray | None:
        return self._p.scores if similarity == "cws" else None

    def _searches_of(
        self, slot: int, sims: dict[tuple[str, str], np.ndarray], include_unmatched: bool
    ) -> Iterator[Search]:
        """One query under all jobs that have it."""
        matchers: dict[SearchOptions, ContextMatcher] = {}
        for number_in_slot, jobs in self._plan.values():
            query = number_in_slot[slot]
            if query < 0:
                continue
            gallery_dets = None
            for index, options, scores in jobs:
                if not scores.has_feat[query]:
                    continue
                if not include_unmatched and index.hits_of(query)[0].size == 0:
                    continue
                if gallery_dets is None:
                    gallery_dets = index.gallery_detections(query)
                row = sims[options.query_source, options.similarity]
                if options.matching == "cbgm":
                    if options not in matchers:
                        matchers[options] = self._matcher(slot, options)
                    row = matchers[options].rescore(row, gallery_dets)
                yield Search(index, int(query), row, gallery_dets, scores)

    def _matcher(self, slot: int, options: SearchOptions) -> ContextMatcher:
        query = self._queries[slot]
        image = int(self._p.image_rows(np.array([query.image_id]), "query images")[0])
        det = None
        if options.query_source == "best_det":
            det = int(self._feats["best_det"][2][slot])
        rows = companions(self._p, query, image, options.cbgm.k2, det)
        weights = self._weights(options.similarity)
        return ContextMatcher(self._p, self._p.reid_feats[rows], weights, options.cbgm)


def _empty_scores(
    protocol: SearchProtocol, index: ProtocolIndex, has_feat: np.ndarray
) -> SearchScores:
    num_queries = len(protocol.queries)
    return SearchScores(
        query_ids=np.array([q.query_id for q in protocol.queries]),
        ap=np.zeros(num_queries),
        best_rank=np.zeros(num_queries, np.int64),
        recall=np.zeros(num_queries),
        num_gt=index.num_gt,
        has_feat=has_feat,
        precisions=[np.zeros(0)] * num_queries,
        name=protocol.name,
    )
