# SPDX-License-Identifier: Apache-2.0
"""Minimum similarities for searches of persons who may be absent."""

import numpy as np
import pytest
from evaluation_cases import random_case, with_gt
from hypothesis import given, settings
from hypothesis import strategies as st

from person_search.evaluation import SearchOptions
from person_search.evaluation.open_set import best_similarities, open_set_table
from person_search.evaluation.ranking import rank_gallery

from .test_search_metrics import BOX, SECOND, THREE_IMAGES, make_case


def best_of(dets, gallery, positives) -> tuple[float, float]:
    case = make_case(dets, gallery, positives)
    right, wrong = best_similarities(case.pooled(), case.protocols["hand"])
    return float(right[0]), float(wrong[0])


def test_best_similarities_by_hand():
    # the stranger of 0.9 is in an image of the person, which is excluded when the person is absent
    assert best_of(THREE_IMAGES, [0, 1, 2], [0, 2]) == pytest.approx((0.8, 0.1))
    assert best_of(THREE_IMAGES, [0, 1, 2], [0]) == pytest.approx((0.6, 0.8))
    right, wrong = best_of(THREE_IMAGES, [0, 1, 2], [])
    assert np.isnan(right) and wrong == pytest.approx(0.9)
    missed = [[(SECOND, 0.9, 0.1)], [(BOX, 0.9, 0.5)], []]
    assert best_of(missed, [0, 2], [0]) == (-np.inf, -np.inf)


@pytest.mark.parametrize("variant", ["", "gt", "strict", "cws", "best_det"])
def test_equals_the_ranked_lists(variant):
    """An entry is right if it is a match, wrong if no entry of the list's true images has it."""
    case = random_case(21, num_images=7)
    options = SearchOptions().with_variant(variant) if variant else SearchOptions()
    predictions = with_gt(case)
    for protocol in case.protocols.values():
        right, wrong = [], []
        for query in range(len(protocol.queries)):
            entries = rank_gallery(predictions, protocol, query, options)
            own = set(protocol.positive_image[protocol.positive_query == query].tolist())
            if not entries and variant == "best_det":
                continue
            found = [entry.sim for entry in entries if entry.verdict == "match"]
            right.append(max(found, default=-np.inf) if own else np.nan)
            others = [entry.sim for entry in entries if entry.image_id not in own]
            wrong.append(max(others, default=-np.inf))
        ours = best_similarities(predictions, protocol, options)
        np.testing.assert_allclose(ours[0], right, atol=1e-6)
        np.testing.assert_allclose(ours[1], wrong, atol=1e-6)


def test_table_by_hand():
    right = np.array([0.95, 0.5, -np.inf, np.nan])
    wrong = np.array([0.9004, 0.4, 0.3, 0.2])
    rows = open_set_table(right, wrong, (0.0, 0.25, 0.5))
    assert [row.min_similarity for row in rows] == [0.901, 0.401, 0.301]
    assert [row.fpir for row in rows] == [0.0, 0.25, 0.5]
    assert [row.tpir for row in rows] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    (alone,) = open_set_table(right, np.full(4, -np.inf), (0.1,))
    assert (alone.min_similarity, alone.fpir) == (-1.0, 0.0)
    with pytest.raises(ValueError, match="no query has an embedding"):
        open_set_table(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="rate is 1, must lie"):
        open_set_table(right, wrong, (1,))


similarity = st.floats(-1, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(similarity, similarity), min_size=1), st.floats(0, 0.99))
def test_the_rate_is_kept_and_no_lower_bound_would_keep_it(pairs, rate):
    right, wrong = np.array(pairs).T
    (row,) = open_set_table(right, wrong, (rate,))
    assert row.fpir <= rate
    assert (wrong >= row.min_similarity - 0.0015).mean() > rate or row.min_similarity == -1
