# SPDX-License-Identifier: Apache-2.0
"""Embeddings of queries, and their similarities with the whole gallery block by block.

Shape shorthand: U queries, N detections, D length of the embedding, B queries of one block.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from person_search.evaluation.box_metrics import first_of_each, overlapping_pairs
from person_search.evaluation.predictions import PooledPredictions
from person_search.schema import Query

MAX_BLOCK_QUERIES = 256
MAX_BLOCK_BYTES = 128 * 2**20
GALLERY_CHUNK = 8192
"""Gallery rows that are turned into float64 at once."""


def query_embeddings(
    predictions: PooledPredictions, queries: Sequence[Query], source: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Collects one embedding per query.

    Returns:
        (U, D) embeddings; (U,) bool: whether there is one (rows without are zero); (U,) the
        detection that it was taken from, -1 for none.
    """
    no_dets = np.full(len(queries), -1)
    if source == "gt_box":
        wanted = np.array([q.query_id for q in queries])
        rows = predictions.query_rows(wanted, "embeddings of queries")
        return predictions.query_feats[rows], np.ones(len(queries), bool), no_dets
    images = predictions.image_rows(np.array([q.image_id for q in queries]), "query images")
    boxes = np.array([q.box for q in queries], np.float64).reshape(-1, 4)
    row, det, iou = overlapping_pairs(
        boxes, images, 0.0, predictions.boxes, predictions.det_offsets
    )
    best = first_of_each(row, -iou, det)
    feats = np.zeros((len(queries), predictions.embed_dim), predictions.reid_feats.dtype)
    feats[row[best]] = predictions.reid_feats[det[best]]
    dets = no_dets
    dets[row[best]] = det[best]
    return feats, dets >= 0, dets


def weighted_blocks(
    query_feats: np.ndarray,
    gallery_feats: np.ndarray,
    weights: Mapping[Any, np.ndarray | None],
    num_arrays: int = 1,
) -> Iterator[tuple[int, dict[Any, np.ndarray]]]:
    """Multiplies queries with the gallery, some queries at a time, and weights each product.

    Args:
        query_feats: (U, D).
        gallery_feats: (N, D).
        weights: the weightings by name: (N,) factors of the gallery columns, or None.
        num_arrays: how many results of this size are held at once, here and elsewhere.

    Yields:
        the number of the block's first query, and by name (B, N) float32 similarities.
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
