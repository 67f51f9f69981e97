# SPDX-License-Identifier: Apache-2.0
"""Search metrics that the same detections reach with random embeddings."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from person_search.evaluation.predictions import PooledPredictions
from person_search.evaluation.search_metrics import evaluate_searches
from person_search.evaluation.settings import SearchOptions
from person_search.schema import SearchProtocol

CHANCE_EMBED_DIM = 16


def chance_level(
    protocol: SearchProtocol,
    detections: PooledPredictions,
    seed: int = 0,
    *,
    num_draws: int = 10,
    topk: Sequence[int] = (1, 5, 10),
    options: SearchOptions | None = None,
) -> dict[str, float]:
    """Computes the search metrics for random unit embeddings of detections and queries.

    Recall does not depend on embeddings; it is the same as with real ones.

    Args:
        protocol: Protocol of the test set.
        detections: Predictions; their embeddings are ignored.
        seed: Seed of the random embeddings.
        num_draws: Number of draws; the metrics are averaged over them.
        topk: The k of the top-k accuracies.
        options: Options of the evaluation to compare with; None for the defaults.

    Returns:
        ``mAP``, ``top<k>``, ``recall`` in percent.

    Raises:
        ValueError: If ``num_draws`` is less than 1.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}, must be at least 1")
    rng = np.random.default_rng(seed)
    query_ids = np.array([q.query_id for q in protocol.queries], np.int64)
    gt = detections.gt_arrays
    draws = []
    for _ in range(num_draws):
        drawn = replace(
            detections,
            reid_feats=_random_directions(rng, len(detections.boxes)),
            query_ids=query_ids,
            query_feats=_random_directions(rng, len(query_ids)),
            gt_feats=None if gt is None else _random_directions(rng, len(gt[1])),
        )
        (scores,) = evaluate_searches(drawn, [(protocol, options or SearchOptions())])
        draws.append(scores.summary(topk))
    return {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}


def _random_directions(rng: np.random.Generator, count: int) -> np.ndarray:
    feats = rng.standard_normal((count, CHANCE_EMBED_DIM)).astype(np.float32)
    return feats / np.linalg.norm(feats, axis=1, keepdims=True)
