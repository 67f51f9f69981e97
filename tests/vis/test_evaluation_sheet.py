# SPDX-License-Identifier: Apache-2.0
"""Texts of the sheets of test queries; tests/tools/test_visualize_search.py draws them."""

import numpy as np
import pytest

from person_search.evaluation import SearchOptions, SearchScores
from person_search.vis.evaluation_sheet import describe_options, describe_outcome


def scores_of(ap: list[float], best_rank: list[int]) -> SearchScores:
    count = len(ap)
    return SearchScores(
        np.arange(count), np.array(ap), np.array(best_rank), np.ones(count),
        np.full(count, 3), np.ones(count, bool),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "text"),
    [(1, "is at rank 1. Average"), (12, "rank 12, which is not shown."),
     (0, "none of them was found.")],
)  # fmt: skip
def test_outcome_in_words(rank: int, text: str) -> None:
    outcome = describe_outcome(scores_of([0.456], [rank]), 0, 50)
    assert text in outcome and outcome.startswith("3 of the 50 searched images show")
    assert outcome.endswith("Average precision: 46 %.")


def test_options_in_words() -> None:
    assert describe_options(SearchOptions()) == ""
    words = describe_options(SearchOptions().with_variant("cws+best_det"))
    assert "multiplied by the score" in words and "represented by the detection" in words
    assert describe_options(SearchOptions(search_iou_thresh=0.3)).endswith("IoU of 0.3 on.")
