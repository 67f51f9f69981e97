# SPDX-License-Identifier: Apache-2.0
"""Ranked lists of test queries must be those that the evaluator scored."""

import numpy as np
import pytest

from person_search.evaluation import (
    PooledPredictions,
    SearchOptions,
    SearchScores,
    evaluate_search,
)
from person_search.evaluation.ranking import choose_examples, rank_query
from person_search.schema import Query, SearchProtocol
from person_search.vis.ranked_list import describe_options, describe_outcome

PERSON = [10.0, 10.0, 50.0, 110.0]
NEAR = [12.0, 10.0, 52.0, 110.0]
ELSEWHERE = [200.0, 10.0, 240.0, 110.0]


def unit(angle: float) -> list[float]:
    return [np.cos(np.radians(angle)), np.sin(np.radians(angle))]


@pytest.fixture
def predictions() -> PooledPredictions:
    """Image 10 holds the query; 11 the person twice and somebody; 12 somebody; 13 nothing."""
    boxes = [PERSON, PERSON, NEAR, ELSEWHERE, ELSEWHERE]
    feats = [unit(a) for a in (0, 30, 20, 10, 40)]
    return PooledPredictions(
        image_ids=np.array([10, 11, 12, 13]),
        det_offsets=np.array([0, 1, 4, 5, 5]),
        boxes=np.array(boxes, np.float32),
        scores=np.array([0.9, 0.9, 0.8, 0.7, 0.6], np.float32),
        reid_feats=np.array(feats, np.float32),
        query_ids=np.array([5]),
        query_feats=np.array([unit(0)], np.float32),
    )


@pytest.fixture
def protocol() -> SearchProtocol:
    return SearchProtocol(
        "all",
        [Query(5, 10, tuple(PERSON), 1)],
        None,
        np.array([0], np.int32),
        np.array([11], np.int32),
        np.array([PERSON], np.float32),
        np.array([[10]], np.int32),
    )


def test_list_of_a_query(predictions, protocol) -> None:
    entries = rank_query(predictions, protocol, 0)
    assert [(e.rank, e.image_id, e.verdict) for e in entries] == [
        (1, 11, "other"),  # elsewhere in the right image
        (2, 11, "match"),  # of the two boxes on the person the more similar one
        (3, 11, "repeat"),
        (4, 12, "other"),
    ]
    assert entries[1].box == pytest.approx(NEAR)
    assert entries[0].sim == pytest.approx(np.cos(np.radians(10)), abs=1e-6)


def test_similarity_weighted_by_score(predictions, protocol) -> None:
    entries = rank_query(predictions, protocol, 0, SearchOptions(similarity="cws"))
    # 0.9 cos 30 = 0.78, 0.8 cos 20 = 0.75, 0.7 cos 10 = 0.69, 0.6 cos 40 = 0.46
    assert [e.verdict for e in entries] == ["match", "repeat", "other", "other"]
    assert entries[0].sim == pytest.approx(0.9 * np.cos(np.radians(30)), abs=1e-6)


def test_query_without_embedding(predictions, protocol) -> None:
    far = Query(5, 13, tuple(PERSON), 1)  # image 13 has no detection to take it from
    moved = SearchProtocol(**{**vars(protocol), "queries": [far]})
    assert rank_query(predictions, moved, 0, SearchOptions(query_source="best_det")) == []


@pytest.mark.parametrize("similarity", ["cosine", "cws"])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_evaluator(seed: int, similarity: str) -> None:
    """Rank of the first match, recall and average precision follow from the list."""
    predictions, protocol = random_case(np.random.default_rng(seed))
    (scores,) = evaluate_search(predictions, [protocol], similarity=similarity)
    for query in range(len(protocol.queries)):
        options = SearchOptions(similarity=similarity)
        entries = rank_query(predictions, protocol, query, options)
        ranks = np.array([e.rank for e in entries if e.verdict == "match"])
        assert scores.best_rank[query] == (ranks[0] if len(ranks) else 0)
        num_gt = scores.num_gt[query]
        precision = np.arange(1, len(ranks) + 1) / ranks if len(ranks) else np.zeros(0)
        assert scores.ap[query] == pytest.approx(precision.sum() / num_gt, abs=1e-6)


def random_case(rng: np.random.Generator) -> tuple[PooledPredictions, SearchProtocol]:
    """Six images with four detections each near the same few places, three queries."""
    images, per_image, queries = 6, 4, 3
    places = np.array([PERSON, ELSEWHERE, [100, 10, 150, 110]], np.float32)
    boxes = places[rng.integers(0, 3, images * per_image)] + rng.normal(0, 2, (24, 1))
    feats = rng.normal(size=(images * per_image + queries, 4))
    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    predictions = PooledPredictions(
        np.arange(images), np.arange(images + 1) * per_image, boxes.astype(np.float32),
        rng.uniform(0.5, 1, len(boxes)).astype(np.float32), feats[:-queries].astype(np.float32),
        np.arange(queries), feats[-queries:].astype(np.float32),
    )  # fmt: skip
    positive_query = np.repeat(np.arange(queries), 2)
    positive_image = np.array([(q + k) % images for q in range(queries) for k in (1, 2)])
    protocol = SearchProtocol(
        "all",
        [Query(q, q, tuple(PERSON), q) for q in range(queries)],
        None,
        positive_query,
        positive_image,
        places[rng.integers(0, 3, 2 * queries)],
        np.arange(queries)[:, None],
    )
    return predictions, protocol


def scores_of(ap: list[float], best_rank: list[int]) -> SearchScores:
    count = len(ap)
    return SearchScores(
        np.arange(count), np.array(ap), np.array(best_rank), np.ones(count),
        np.full(count, 3), np.ones(count, bool),
    )  # fmt: skip


def test_examples_are_the_middle_of_their_kind() -> None:
    scores = scores_of([0.9, 0.1, 0.7, 0.5, 0.3, 0.8, 0.2], [1, 3, 1, 1, 2, 1, 0])
    # successes by AP: 0 5 2 3, failures: 4 6 1, all: 0 5 2 3 4 6 1
    assert choose_examples(scores) == [("success", 5), ("median", 3), ("failure", 6)]


def test_examples_differ() -> None:
    assert choose_examples(scores_of([1.0, 1.0, 1.0], [1, 1, 1])) == [("success", 1), ("median", 0)]
    assert choose_examples(scores_of([0.0], [0])) == [("failure", 0)]
    assert choose_examples(scores_of([0.5, 0.4], [1, 2])) == [("success", 0), ("failure", 1)]


@pytest.mark.parametrize(
    ("rank", "text"),
    [(1, "comes at place 1. Average"), (12, "place 12, which is beyond what is shown."),
     (0, "none of them was found.")],
)  # fmt: skip
def test_outcome_in_words(rank: int, text: str) -> None:
    outcome = describe_outcome(scores_of([0.456], [rank]), 0, 50)
    assert text in outcome and outcome.startswith("3 of the 50 searched images show")
    assert outcome.endswith("Average precision: 46 %.")


def test_options_in_words() -> None:
    assert describe_options(SearchOptions()) == ""
    words = describe_options(SearchOptions().changed("cws+best_det"))
    assert "multiplied with the score" in words and "described by the detection" in words
    assert describe_options(SearchOptions(iou_thresh=0.3)).endswith("IoU of 0.3 on.")
