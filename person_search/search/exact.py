# SPDX-License-Identifier: Apache-2.0
"""Exact search: one product with every embedding, straight from the memory mapped files.

Nothing is copied and nothing is built, so a filter costs nothing and an image that has just been
added is found. The memory bus decides how long it takes: the products are taken row by row (BLAS's
dot), which on one query is two to three times as fast as BLAS's product of matrix and vector.

Shape shorthand: N persons, D length of an embedding, k wanted.
"""

from collections.abc import Sequence

import numpy as np

CHUNK = 512
"""Rows whose best similarity stands for them in the first look of :func:`best_rows`."""


def similarities(parts: Sequence[np.ndarray], query_feat: np.ndarray) -> np.ndarray:
    """Cosine similarities (N,) of a query to the rows of all parts, one after another.

    Args:
        parts: arrays (n_i, D) float32 of unit length.
        query_feat: (D,) of unit length.
    """
    query_feat = np.ascontiguousarray(query_feat, np.float32)
    sims = np.empty(sum(len(part) for part in parts), np.float32)
    start = 0
    for part in parts:
        np.vecdot(part, query_feat, out=sims[start : start + len(part)])
        start += len(part)
    return sims


def best_rows(sims: np.ndarray, k: int) -> np.ndarray:
    """The k most similar rows, best first, equal ones by their number; fewer if there are fewer.

    Rows of similarity -inf are left out. Most rows are looked at once: the k-th best of the chunks'
    maxima is a bound that all of the k best rows reach.
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
