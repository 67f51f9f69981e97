# SPDX-License-Identifier: Apache-2.0
"""Open-set metrics: errors of a minimum similarity where the person may be absent.

The metrics of search_metrics.py rank: every list has a first entry. A minimum similarity makes two
kinds of errors, which ISO/IEC 19795-1 measures for open-set identification:

* FPIR, the false positive identification rate: searches for *absent* persons that return a person.
  Each query is searched in the gallery images without the person.
* TPIR, the true positive identification rate: searches for present persons that return them, at any
  rank.

Shape shorthand: Q queries of a protocol that have an embedding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from person_search.evaluation.predictions import PooledPredictions
from person_search.evaluation.protocol_index import check_protocol
from person_search.evaluation.search_metrics import each_search
from person_search.evaluation.settings import SearchOptions
from person_search.schema import SearchProtocol

FALSE_POSITIVE_RATES = (0.01, 0.05, 0.1, 0.2, 0.5)
_DECIMALS = 3


@dataclass(frozen=True)
class OpenSetRow:
    """Errors at one minimum similarity.

    Attributes:
        min_similarity: Minimum similarity, rounded up to three decimals.
        fpir: False positive identification rate in [0, 1].
        tpir: True positive identification rate in [0, 1]; ``nan`` if no query's person is present.
    """

    min_similarity: float
    fpir: float
    tpir: float


def best_similarities(
    predictions: PooledPredictions, protocol: SearchProtocol, options: SearchOptions | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the similarity of the best right and the best wrong box of every query.

    Args:
        predictions: See :func:`~person_search.evaluation.evaluate_search`.
        protocol: Protocol of the test set.
        options: Options of the search; None for the defaults.

    Returns:
        (Q,) similarity of the person, nan if the gallery does not show the person and -inf if no
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
    """Finds, for each rate, the lowest similarity at which FPIR does not exceed it.

    Args:
        right: (Q,) result of :func:`best_similarities`; Q is at least 1.
        wrong: (Q,) result of :func:`best_similarities`.
        rates: False positive identification rates in [0, 1).

    Raises:
        ValueError: If no query has an embedding or a rate is out of range.
    """
    if not len(wrong):
        raise ValueError("no query has an embedding, so no minimum similarity can be chosen")
    falling = np.sort(wrong)[::-1]
    present = right[~np.isnan(right)]
    rows = []
    for rate in rates:
        if not 0 <= rate < 1:
            raise ValueError(f"a false positive rate is {rate}, must lie in [0, 1)")
        first_refused = falling[int(rate * len(falling))]
        bound = -1.0
        if first_refused >= -1:  # the next similarity above it with three decimals
            bound = (math.floor(first_refused * 10**_DECIMALS) + 1) / 10**_DECIMALS
        tpir = float((present >= bound).mean()) if len(present) else math.nan
        rows.append(OpenSetRow(bound, float((wrong >= bound).mean()), tpir))
    return rows
