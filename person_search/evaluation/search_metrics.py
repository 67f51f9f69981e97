# SPDX-License-Identifier: Apache-2.0
"""Search figures: mAP, top-k and recall of ranked gallery detections, for any protocol.

Shape shorthand: Q queries of a protocol, U distinct queries of all protocols, N detections,
D length of the embedding, B queries of one block.

Rules, for one query (those of SeqNet's evaluation, which the field compares by):

* The entries of the ranked list are the *detections* of all gallery images.
* In a gallery image that holds the person, the entry of highest similarity among those with
  IoU >= :func:`~person_search.evaluation.box_metrics.adaptive_iou_threshold` is the positive. All
  other entries of that image are negatives, also a second box on the same person.
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
from dataclasses import dataclass

import numpy as np

from person_search.evaluation.box_metrics import first_of_each, overlapping_pairs
from person_search.evaluation.detection_metrics import average_precision
from person_search.evaluation.predictions import PooledPredictions
from person_search.evaluation.protocol_index import DUPLICATE_RULES, ProtocolIndex, index_protocol
from person_search.schema import Query, SearchProtocol

SIMILARITIES = ("cosine", "cws")
QUERY_SOURCES = ("gt_box", "best_det")
MAX_BLOCK_QUERIES = 256
MAX_BLOCK_BYTES = 128 * 2**20
GALLERY_CHUNK = 8192
"""Gallery rows that are turned into float64 at once."""


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
    """

    query_ids: np.ndarray
    ap: np.ndarray
    best_rank: np.ndarray
    recall: np.ndarray
    num_gt: np.ndarray
    has_feat: np.ndarray

    def summary(self, topk: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """Means over all queries in percent: ``mAP``, ``top<k>`` for each k, ``recall``."""
        found = self.best_rank > 0
        figures = {"mAP": self.ap.mean()}
        figures.update({f"top{k}": (found & (self.best_rank <= k)).mean() for k in topk})
        figures["recall"] = self.recall.mean()
        return {name: 100.0 * float(value) for name, value in figures.items()}


def evaluate_search(
    predictions: PooledPredictions,
    protocols: Sequence[SearchProtocol],
    *,
    similarity: str = "cosine",
    duplicates: str = "seqnet",
    query_source: str = "gt_box",
) -> list[SearchScores]:
    """Ranks the gallery of every query of every protocol.

    A query that several protocols share is compared with the gallery once.

    Args:
        predictions: pooled over the whole test set; the similarity is the plain dot product, so a
            query embedding may have any length but gallery embeddings must be normalized.
        protocols: of that test set.
        similarity: ``cosine``, or ``cws``: cosine times the score of the gallery detection.
        duplicates: see :func:`~person_search.evaluation.protocol_index.index_protocol`.
        query_source: ``gt_box``: the embedding computed for the query box; ``best_det``: that of
            the detection in the query image with the highest IoU, whatever that IoU is.

    Raises:
        ValueError: an unknown option, a query without an embedding, an inconsistent protocol.
    """
    check_options(similarity, duplicates, query_source)
    p = predictions
    indices = [
        index_protocol(protocol, p.image_ids, p.boxes, p.det_offsets, duplicates)
        for protocol in protocols
    ]
    queries = {q.query_id: q for protocol in protocols for q in protocol.queries}
    feats, has_feat = query_embeddings(p, list(queries.values()), query_source)
    slot_of = {query_id: slot for slot, query_id in enumerate(queries)}
    slots = [np.array([slot_of[q.query_id] for q in protocol.queries]) for protocol in protocols]
    scores = [
        _empty_scores(protocol, index, has_feat[slot])
        for protocol, index, slot in zip(protocols, indices, slots, strict=True)
    ]
    weights = p.scores if similarity == "cws" else None
    for first, sims in similarity_blocks(feats, p.reid_feats, weights):
        for index, slot, score in zip(indices, slots, scores, strict=True):
            for q in np.flatnonzero((slot >= first) & (slot < first + len(sims))):
                if has_feat[slot[q]]:
                    _score_query(index, q, sims[slot[q] - first], score)
    return scores


def check_options(similarity: str, duplicates: str, query_source: str) -> None:
    """Raises ValueError for a value that :func:`evaluate_search` does not know."""
    for name, value, allowed in (
        ("similarity", similarity, SIMILARITIES),
        ("duplicates", duplicates, DUPLICATE_RULES),
        ("query_source", query_source, QUERY_SOURCES),
    ):
        if value not in allowed:
            raise ValueError(
                f"{name} is {value!r}, allowed: {allowed} (cfg.TEST.PERSON_SEARCH.{name.upper()})"
            )


def query_embeddings(
    predictions: PooledPredictions, queries: Sequence[Query], source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Collects one embedding per query.

    Returns:
        (U, D) embeddings, and (U,) bool: whether there is one (rows without are zero).
    """
    if source == "gt_box":
        wanted = np.array([q.query_id for q in queries])
        rows = predictions.query_rows(wanted, "embeddings of queries")
        return predictions.query_feats[rows], np.ones(len(queries), bool)
    images = predictions.image_rows(np.array([q.image_id for q in queries]), "query images")
    boxes = np.array([q.box for q in queries], np.float64).reshape(-1, 4)
    row, det, iou = overlapping_pairs(
        boxes, images, 0.0, predictions.boxes, predictions.det_offsets
    )
    best = first_of_each(row, -iou, det)
    feats = np.zeros((len(queries), predictions.embed_dim), predictions.reid_feats.dtype)
    feats[row[best]] = predictions.reid_feats[det[best]]
    has_feat = np.zeros(len(queries), bool)
    has_feat[row[best]] = True
    return feats, has_feat


def similarity_blocks(
    query_feats: np.ndarray, gallery_feats: np.ndarray, weights: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Multiplies queries with the gallery, some queries at a time.

    Args:
        query_feats: (U, D).
        gallery_feats: (N, D).
        weights: (N,) factors of the gallery columns, or None.

    Yields:
        the number of the block's first query, and (B, N) float32 similarities.
    """
    num_gallery = len(gallery_feats)
    fitting = MAX_BLOCK_BYTES // (4 * max(num_gallery, 1))
    block = int(np.clip(fitting, 1, MAX_BLOCK_QUERIES))
    for first in range(0, len(query_feats), block):
        queries = query_feats[first : first + block].astype(np.float64)
        sims = np.empty((len(queries), num_gallery), np.float32)
        for start in range(0, num_gallery, GALLERY_CHUNK):
            columns = slice(start, start + GALLERY_CHUNK)
            products = queries @ gallery_feats[columns].astype(np.float64).T
            sims[:, columns] = products if weights is None else products * weights[columns]
        yield first, sims


def _score_query(index: ProtocolIndex, query: int, sims: np.ndarray, out: SearchScores) -> None:
    """Fills row ``query`` of ``out`` from the (N,) similarities of all detections."""
    hits = slice(index.hit_offsets[query], index.hit_offsets[query + 1])
    hit_det = index.hit_det[hits]
    if len(hit_det) == 0:
        return
    # the first hit of each image in the order of the ranked list
    chosen = first_of_each(index.hit_positive[hits], -sims[hit_det], hit_det)
    positive_dets = hit_det[chosen]
    gallery_dets = index.gallery_detections(query)
    gallery_sims, positive_sims = sims[gallery_dets], sims[positive_dets]
    num_gt = int(index.num_gt[query])
    out.ap[query] = average_precision(gallery_sims, positive_sims, num_gt)
    out.recall[query] = len(positive_dets) / num_gt
    best = positive_sims.max()
    tied = gallery_dets[gallery_sims == best]
    tied_before = int(np.isin(tied, positive_dets).argmax())
    out.best_rank[query] = np.count_nonzero(gallery_sims > best) + tied_before + 1


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
    )
