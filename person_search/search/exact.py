# SPDX-License-Identifier: Apache-2.0
"""Exact search: dot products with all memory-mapped embeddings.

Nothing is copied or built, so filters are free and new images are found immediately. The time is
bounded by memory bandwidth: for a single query, row-wise dot products are two to three times as
fast as a BLAS matrix-vector product.

Shape shorthand: N persons, D embedding dimension, k requested results.
"""

from collections.abc import Sequence

import numpy as np

CHUNK = 512
"""Rows per chunk in the first pass of :func:`best_rows`."""


def similarities(parts: Sequence[np.ndarray], query_feat: np.ndarray) -> np.ndarray:
    """Computes the cosine similarities of a query to the rows of all parts.

    Args:
        parts: Arrays (n_i, D) float32 of unit length.
        query_feat: Query embedding (D,) of unit length.

    Returns:
        Similarities (N,) in the order of the parts.
    """
    query_feat = np.ascontiguousarray(query_feat, np.float32)
    sims = np.empty(sum(len(part) for part in parts), np.float32)
    start = 0
    for part in parts:
        np.vecdot(part, query_feat, out=sims[start : start + len(part)])
        start += len(part)
    return sims


def best_rows(sims: np.ndarray, k: int) -> np.ndarray:
    """Returns the k most similar rows, best first and ties by row number; fewer if N < k.

    Rows with similarity -inf are excluded. Most rows are compared once only: the k-th largest
    chunk maximum is a lower bound for the k best rows.
    """
    chunks = len(sims) // CHUNK
    if k <= 0 or not len(sims):
        return np.zeros(0, np.int64)
    if k < chunks:
        maxima = sims[: chunks * CHUNK].reshape(chunks, CHUNK).max(axis=1)
        bound = np.partition(maxima, chunks - k)[chunks - k]
        rows = np.flatnonzero(sims >= bound)
    else:
        rows = np.arange(len(sims))
    rows = rows[sims[rows] > -np.inf]
    return rows[np.argsort(-sims[rows], kind="stable")[:k]]
