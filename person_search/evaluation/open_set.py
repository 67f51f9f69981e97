# SPDX-License-Identifier: Apache-2.0
"""Is the person here at all? What a lowest similarity does to searches that should find nobody.

The figures of search_metrics.py rank: somebody is always first. Who shows only what is similar
enough makes two kinds of errors, which ISO/IEC 19795-1 measures for identification in an open set:

* FPIR, the false positive identification rate: searches for persons who are *not* there that show
  somebody. Each query is searched in the gallery images without the person.
* TPIR, the true positive identification rate: searches for persons who are there that show them, at
  whatever rank.

Shape shorthand: Q queries of a protocol that have an embedding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from person_search.evaluation.options import SearchOptions
from person_search.evaluation.predictions import PooledPredictions
from person_search.evaluation.protocol_index import check_protocol
from person_search.evaluation.search_metrics import each_search
from person_search.schema import SearchProtocol

FALSE_POSITIVE_RATES = (0.01, 0.05, 0.1, 0.2, 0.5)
_DECIMALS = 3


@dataclass(frozen=True)
class OpenSetRow:
    """What one lowest similarity gives.

    Args:
        min_similarity: rounded up to three decimals.
        fpir, tpir: see above, in [0, 1]; ``nan`` without a query that could show it.
    """

    min_similarity: float
    fpir: float
    tpir: float


def best_similarities(
    predictions: PooledPredictions, protocol: SearchProtocol, options: SearchOptions | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar right and the most similar wrong box of every query.

    Args:
        predictions, protocol: as for :func:`~person_search.evaluation.evaluate_search`.
        options: None for the defaults.

    Returns:
        (Q,) similarity of the person, nan if the gallery does not hold the person and -inf if no
        box overlaps; (Q,) similarity of the best box in the gallery images without the person, -inf
        if there is none.
    """
    options = options or SearchOptions()
    p = predictions.on_gt_boxes() if options.gallery_boxes == "gt" else predictions
    image_of_det = np.repeat(np.arange(len(p.image_ids)), np.diff(p.det_offsets))
    positive_image = check_protocol(protocol, p.image_ids).positive_image
    order = np.argsort(protocol.positive_query, kind="stable")
    bounds = np.searchsorted(
        np.asarray(protocol.positive_query)[order], np.arange(len(protocol.queries) + 1)
    )
    right, wrong = [], []
    for search in each_search(p, protocol, options):
        own = positive_image[order[bounds[search.query] : bounds[search.query + 1]]]
        others = search.gallery_dets[~np.isin(image_of_det[search.gallery_dets], own)]
        found = search.sims[search.positive_dets()].max(initial=-np.inf)
        right.append(found if len(own) else np.nan)
        wrong.append(search.sims[others].max(initial=-np.inf))
    return np.array(right, np.float64), np.array(wrong, np.float64)


def open_set_table(
    right: np.ndarray, wrong: np.ndarray, rates: Sequence[float] = FALSE_POSITIVE_RATES
) -> list[OpenSetRow]:
    """For each rate, the lowest similarity at which FPIR does not exceed it.

    Args:
        right, wrong: of :func:`best_similarities`, at least one query.
        rates: false positive identification rates in [0, 1).
    """
    if not len(wrong):
        raise ValueError("no query has an embedding, so there is no similarity to choose.")
    falling = np.sort(wrong)[::-1]
    present = right[~np.isnan(right)]
    rows = []
    for rate in rates:
        if not 0 <= rate < 1:
            raise ValueError(f"a false positive rate is {rate}; rates are from 0 to below 1.")
        first_refused = falling[int(rate * len(falling))]
        bound = -1.0
        if first_refused >= -1:  # the next similarity above it that three decimals can tell
            bound = (math.floor(first_refused * 10**_DECIMALS) + 1) / 10**_DECIMALS
        tpir = float((present >= bound).mean()) if len(present) else math.nan
        rows.append(OpenSetRow(bound, float((wrong >= bound).mean()), tpir))
    return rows
