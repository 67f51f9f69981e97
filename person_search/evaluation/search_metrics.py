# SPDX-License-Identifier: Apache-2.0
"""Search metrics: mAP, top-k and recall of ranked gallery detections, for any protocol.

Shape shorthand: Q queries of a protocol, U distinct queries of all protocols, B queries of one
block, N detections, D length of the embedding, G entries of one ranked list, K positives found for
one query.

Rules for one query, which are those of SeqNet's evaluation and the standard of the field:

* The entries of the ranked list are the *detections* of all gallery images.
* In a gallery image that shows the person, the entry of highest similarity among those with
  IoU >= :func:`~person_search.evaluation.box_metrics.adaptive_iou_threshold` is the positive (with
  the rule ``fixed``: among those with IoU >= the threshold itself). All other entries of that image
  are negatives, also a second box on the same person.
* ``AP = (1 / num_gt) * sum over positives p of positives(sim >= s_p) / entries(sim >= s_p)`` with
  ``num_gt`` the gallery images that show the person, found or not. This is the average precision
  of the list times the recall.
* top-k: one of the first k entries is a positive.
* A query whose gallery does not show the person, or without an embedding, scores 0 everywhere.

Ties. Entries are ranked by (-similarity, position of the image in the gallery, position of the
detection in the image). The same order decides which of two equally similar entries is the
positive, and top-k. AP takes equal similarities as one step of the curve, so it does not depend on
that order. Dot products are summed in float64 and then rounded to float32: equal embeddings give
equal similarities on every machine and in blocks of every size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from person_search.evaluation.box_metrics import first_of_each, overlapping_pairs
from person_search.evaluation.cbgm import ContextMatcher, companions
from person_search.evaluation.detection_metrics import precision_steps
from person_search.evaluation.predictions import PooledPredictions, find_rows
from person_search.evaluation.protocol_index import (
    CheckedProtocol,
    ProtocolIndex,
    check_protocol,
    index_protocol,
)
from person_search.evaluation.settings import SearchOptions
from person_search.schema import Query, SearchProtocol

MAX_BLOCK_QUERIES = 256
MAX_BLOCK_BYTES = 128 * 2**20
GALLERY_CHUNK = 8192
"""Gallery rows converted to float64 at once."""


@dataclass(frozen=True)
class SearchScores:
    """Result of a protocol, query by query.

    Attributes:
        query_ids: (Q,) ids of the queries.
        ap: (Q,) average precision in [0, 1].
        best_rank: (Q,) int64, rank of the first positive from 1 on; 0 where none was found.
        recall: (Q,) images with a positive / ``num_gt``; 0 where ``num_gt`` is 0.
        num_gt: (Q,) gallery images that show the person.
        has_feat: (Q,) bool; False only with ``best_det`` for a query image without detections.
        precisions: For each query (K,), the precision at each positive from the most similar down;
            the k-th is at recall k / ``num_gt``, and AP is their sum / ``num_gt``.
        name: Name of the protocol.
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
        """Returns means over all queries in percent: ``mAP``, ``top<k>`` for each k, ``recall``."""
        found = self.best_rank > 0
        metrics = {"mAP": self.ap.mean()}
        metrics.update({f"top{k}": (found & (self.best_rank <= k)).mean() for k in topk})
        metrics["recall"] = self.recall.mean()
        return {name: 100.0 * float(value) for name, value in metrics.items()}


def evaluate_search(
    predictions: PooledPredictions, protocols: Sequence[SearchProtocol], **options: Any
) -> list[SearchScores]:
    """Ranks the gallery of every query of every protocol.

    Args:
        predictions: Predictions for the whole test set. The similarity is the plain dot product, so
            gallery embeddings must be normalized; a query embedding may have any length, except
            with CBGM.
        protocols: Protocols of that test set.
        **options: Fields of :class:`~person_search.evaluation.settings.SearchOptions`.

    Raises:
        ValueError: If an option is unknown, a query has no embedding or a protocol is inconsistent.
    """
    chosen = SearchOptions(**options)
    return evaluate_searches(predictions, [(protocol, chosen) for protocol in protocols])


def evaluate_searches(
    predictions: PooledPredictions, jobs: Sequence[tuple[SearchProtocol, SearchOptions]]
) -> list[SearchScores]:
    """Ranks galleries under several protocols and options.

    A query that several jobs share is compared with the gallery once.

    Args:
        predictions: See :func:`evaluate_search`.
        jobs: Pairs of a protocol and its options.

    Returns:
        One result per job.

    Raises:
        ValueError: See :func:`evaluate_search`.
    """
    results: dict[int, SearchScores] = {}
    for boxes in ("det", "gt"):
        numbers = [n for n, (_, options) in enumerate(jobs) if options.gallery_boxes == boxes]
        if numbers:
            pool = predictions if boxes == "det" else predictions.on_gt_boxes()
            ranking = _Ranking(pool, [jobs[n] for n in numbers])
            for search in ranking.searches():
                search.score()
            results.update(zip(numbers, ranking.scores, strict=True))
    return [results[number] for number in range(len(jobs))]


@dataclass(frozen=True)
class Search:
    """One query under one protocol and one set of options, ready to be ranked.

    Attributes:
        index: Index of the protocol.
        query: Number of the query in the protocol.
        sims: (N,) similarities of all detections, re-scored where the options ask for it.
        gallery_dets: Rows of the searched detections, in gallery order.
        out: Scores that receive the result of the query.
    """

    index: ProtocolIndex
    query: int
    sims: np.ndarray
    gallery_dets: np.ndarray
    out: SearchScores

    def positive_dets(self) -> np.ndarray:
        """Returns the first hit of each image in the order of the ranked list."""
        hit_positive, hit_det = self.index.hits_of(self.query)
        return hit_det[first_of_each(hit_positive, -self.sims[hit_det], hit_det)]

    def score(self) -> None:
        """Fills the row of the query in ``out``; the query must have a hit."""
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


def each_search(
    boxes: PooledPredictions, protocol: SearchProtocol, options: SearchOptions
) -> Iterator[Search]:
    """Yields the searches of a protocol, ranked as for the metrics.

    Searches that cannot find the person are included, those of queries without an embedding are
    not.

    Args:
        boxes: Searched boxes; with ``gallery_boxes`` ``gt`` the ground truth boxes, in place of the
            detections.
        protocol: Protocol to search.
        options: Options of the search.
    """
    return _Ranking(boxes, [(protocol, options)]).searches(include_unmatched=True)


class _Ranking:
    """All searches in one set of gallery boxes."""

    def __init__(
        self, predictions: PooledPredictions, jobs: Sequence[tuple[SearchProtocol, SearchOptions]]
    ) -> None:
        self._p = p = predictions
        self._queries = list({q.query_id: q for pr, _ in jobs for q in pr.queries}.values())
        slot_of = {query.query_id: slot for slot, query in enumerate(self._queries)}
        self._feats = {
            source: _query_embeddings(p, self._queries, source)
            for source in dict.fromkeys(options.query_source for _, options in jobs)
        }
        checked: dict[int, CheckedProtocol] = {}
        indices: dict[tuple, ProtocolIndex] = {}
        # per protocol: the query in every slot (or -1), and what to compute for it
        self._plan: dict[int, tuple[np.ndarray, list]] = {}
        self.scores = []
        for protocol, options in jobs:
            slots = np.array([slot_of[q.query_id] for q in protocol.queries])
            if id(protocol) not in checked:
                checked[id(protocol)] = check_protocol(protocol, p.image_ids)
                number_in_slot = np.full(len(self._queries), -1)
                number_in_slot[slots] = np.arange(len(slots))
                self._plan[id(protocol)] = (number_in_slot, [])
            key = (id(protocol), options.duplicates, options.iou_rule, options.search_iou_thresh)
            if key not in indices:
                indices[key] = index_protocol(
                    checked[id(protocol)], p.boxes, p.det_offsets, options.duplicates,
                    options.iou_rule, options.search_iou_thresh,
                )  # fmt: skip
            num_queries = len(slots)
            scores = SearchScores(
                query_ids=np.array([q.query_id for q in protocol.queries]),
                ap=np.zeros(num_queries),
                best_rank=np.zeros(num_queries, np.int64),
                recall=np.zeros(num_queries),
                num_gt=indices[key].num_gt,
                has_feat=self._feats[options.query_source][1][slots],
                precisions=[np.zeros(0)] * num_queries,
                name=protocol.name,
            )
            self._plan[id(protocol)][1].append((indices[key], options, scores))
            self.scores.append(scores)
        self._kinds = list(dict.fromkeys((o.query_source, o.similarity) for _, o in jobs))

    def searches(self, include_unmatched: bool = False) -> Iterator[Search]:
        """Yields the searches of queries that have an embedding.

        Args:
            include_unmatched: Includes searches that cannot find the person because no detection
                overlaps it.
        """
        streams = []
        for source, (feats, _, _) in self._feats.items():
            weights = {kind: self._weights(kind[1]) for kind in self._kinds if kind[0] == source}
            streams.append(_weighted_blocks(feats, self._p.reid_feats, weights, len(self._kinds)))
        for blocks in zip(*streams, strict=True):
            sims = {kind: block for _, part in blocks for kind, block in part.items()}
            for row in range(len(next(iter(sims.values())))):
                own = {kind: block[row] for kind, block in sims.items()}
                yield from self._searches_of(blocks[0][0] + row, own, include_unmatched)

    def _weights(self, similarity: str) -> np.ndarray | None:
        return self._p.scores if similarity == "cws" else None

    def _searches_of(
        self, slot: int, sims: dict[tuple[str, str], np.ndarray], include_unmatched: bool
    ) -> Iterator[Search]:
        """Yields one query under all jobs that contain it."""
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
        image = int(find_rows(self._p.image_ids, [query.image_id], "image_id", "query images")[0])
        det = None
        if options.query_source == "best_det":
            det = int(self._feats["best_det"][2][slot])
        rows = companions(self._p, query, image, options.cbgm_k2, det)
        weights = self._weights(options.similarity)
        return ContextMatcher(self._p, self._p.reid_feats[rows], weights, options)


def _query_embeddings(
    predictions: PooledPredictions, queries: Sequence[Query], source: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (U, D) embeddings, (U,) whether there is one, and (U,) its detection or -1."""
    p, dets = predictions, np.full(len(queries), -1)
    if source == "gt_box":
        wanted = [q.query_id for q in queries]
        rows = find_rows(p.query_ids, wanted, "query_id", "embeddings of queries")
        return p.query_feats[rows], np.ones(len(queries), bool), dets
    images = find_rows(p.image_ids, [q.image_id for q in queries], "image_id", "query images")
    boxes = np.array([q.box for q in queries], np.float64).reshape(-1, 4)
    row, det, iou = overlapping_pairs(boxes, images, 0.0, p.boxes, p.det_offsets)
    best = first_of_each(row, -iou, det)
    feats = np.zeros((len(queries), p.embed_dim), p.reid_feats.dtype)
    feats[row[best]] = p.reid_feats[det[best]]
    dets[row[best]] = det[best]
    return feats, dets >= 0, dets


def _weighted_blocks(
    query_feats: np.ndarray,
    gallery_feats: np.ndarray,
    weights: Mapping[Any, np.ndarray | None],
    num_arrays: int,
) -> Iterator[tuple[int, dict[Any, np.ndarray]]]:
    """Yields the number of a block's first query and its (B, N) float32 similarities by name.

    ``weights`` are (N,) factors of the gallery columns or None; ``num_arrays`` is the number of
    results of this size that are in memory at once, here and elsewhere.
    """
    num_gallery = len(gallery_feats)
    fitting = MAX_BLOCK_BYTES // (4 * max(num_gallery, 1) * num_arrays)
    block = int(np.clip(fitting, 1, MAX_BLOCK_QUERIES))
    for first in range(0, len(query_feats), block):
        queries = query_feats[first : first + block].astype(np.float64)
        sims = {name: np.empty((len(queries), num_gallery), np.float32) for name in weights}
        for start in range(0, num_gallery, GALLERY_CHUNK):
            columns = slice(start, start + GALLERY_CHUNK)
            products = queries @ gallery_feats[columns].astype(np.float64).T
            for name, factors in weights.items():
                weighted = products if factors is None else products * factors[columns]
                sims[name][:, columns] = weighted
        yield first, sims
