# SPDX-License-Identifier: Apache-2.0
"""Ranked lists match the metrics, whatever the protocol and the options; choice of examples."""

import dataclasses
import itertools

import numpy as np
import pytest
from evaluation_cases import random_case, registered, with_gt
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import ranked_ap

from person_search.evaluation import (
    PersonSearchEvaluator,
    PooledPredictions,
    SearchOptions,
    SearchScores,
    rank_gallery,
    write_predictions,
)
from person_search.evaluation.ranking import choose_examples
from person_search.evaluation.search_metrics import evaluate_searches
from person_search.evaluation.settings import OPTION_VALUES
from person_search.schema import Query, SearchProtocol

EVERY_VARIANT = ["+".join(values) for values in itertools.product(*OPTION_VALUES.values())]


def check_lists(predictions, protocol, options, scores) -> int:
    """Works every metric out again from the ranked lists; returns the number of positives."""
    num_positives = 0
    for query in range(len(protocol.queries)):
        entries = rank_gallery(predictions, protocol, query, options)
        sims = [entry.sim for entry in entries]
        assert sims == sorted(sims, reverse=True)
        assert [entry.rank for entry in entries] == list(range(1, len(entries) + 1))
        ranks = [entry.rank for entry in entries if entry.verdict == "match"]
        num_gt = int(scores.num_gt[query])
        flags = [(entry.sim, entry.verdict == "match") for entry in entries]
        assert ranked_ap(flags, num_gt) == pytest.approx(scores.ap[query], abs=1e-9)
        assert scores.best_rank[query] == (ranks[0] if ranks else 0)
        assert scores.recall[query] == pytest.approx(len(ranks) / num_gt if num_gt else 0)
        assert bool(scores.has_feat[query]) or not entries
        num_positives += len(ranks)
    return num_positives


@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_every_variant_on_a_case(variant):
    case = random_case(21, num_images=7)
    predictions, options = with_gt(case), SearchOptions().with_variant(variant)
    jobs = [(protocol, options) for protocol in case.protocols.values()]
    found = evaluate_searches(predictions, jobs)
    counts = [
        check_lists(predictions, protocol, options, scores)
        for (protocol, _), scores in zip(jobs, found, strict=True)
    ]
    assert sum(counts) > 3


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
    variant=st.sampled_from(EVERY_VARIANT),
    iou_thresh=st.sampled_from([0.3, 0.5, 0.8]),
    cbgm=st.tuples(st.integers(1, 12), st.integers(1, 3), st.sampled_from(["max", "mean"])),
)
def test_lists_of_random_cases(seed, ties, variant, iou_thresh, cbgm):
    case = random_case(seed, ties=ties)
    predictions = with_gt(case)
    base = SearchOptions(
        search_iou_thresh=iou_thresh, cbgm_k1=cbgm[0], cbgm_k2=cbgm[1], cbgm_mode=cbgm[2]
    )
    options = base.with_variant(variant)
    jobs = [(protocol, options) for protocol in case.protocols.values()]
    for (protocol, _), scores in zip(jobs, evaluate_searches(predictions, jobs), strict=True):
        check_lists(predictions, protocol, options, scores)


def test_lists_of_an_evaluation(tmp_path):
    """The metrics of every section of the evaluator itself, all made at once."""
    case = random_case(3, ties=False)
    variants = ["cws", "cbgm", "cws+cbgm", "best_det", "gt", "strict", "fixed", "gt+cbgm+strict"]
    with registered(case, "rank_case") as name:
        judge = PersonSearchEvaluator(
            name, protocols=["listed", "all", "others"], variants=variants, score_thresh=0.0
        )
        write_predictions(
            dataclasses.replace(with_gt(case), info={"dataset": name}), tmp_path / "p.npz"
        )
        judge.load_predictions(tmp_path / "p.npz")
        judge.score()
        assert len(judge.sections) == 27
        for section in judge.sections:
            scores, protocol = judge.search_scores[section.task], judge.protocol(section.protocol)
            check_lists(judge.predictions, protocol, section.options, scores)


def test_context_and_true_boxes_change_the_list():
    """The options are not just accepted: the lists differ."""
    case = random_case(8, ties=False)
    predictions, protocol = with_gt(case), case.protocols["all"]
    plain, cbgm, gt = (
        [
            [
                (e.image_id, e.box, e.sim)
                for e in rank_gallery(predictions, protocol, query, options)
            ]
            for query in range(len(protocol.queries))
        ]
        for options in (None, SearchOptions(matching="cbgm"), SearchOptions(gallery_boxes="gt"))
    )
    assert plain != cbgm and plain != gt
    boxes_of = {i: [tuple(box) for box in boxes] for i, boxes in case.gt.items()}
    assert all(box in boxes_of[image] for row in gt for image, box, _ in row)


PERSON = [10.0, 10.0, 50.0, 110.0]
NEAR = [12.0, 10.0, 52.0, 110.0]
ELSEWHERE = [200.0, 10.0, 240.0, 110.0]


def unit(angle: float) -> list[float]:
    return [np.cos(np.radians(angle)), np.sin(np.radians(angle))]


@pytest.fixture
def predictions() -> PooledPredictions:
    """Image 10 has the query; 11 the person twice and a stranger; 12 a stranger; 13 nothing."""
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
    entries = rank_gallery(predictions, protocol, 0)
    assert [(e.rank, e.image_id, e.verdict) for e in entries] == [
        (1, 11, "other"),  # elsewhere in the right image
        (2, 11, "match"),  # of the two boxes on the person the more similar one
        (3, 11, "repeat"),
        (4, 12, "other"),
    ]
    assert entries[1].box == pytest.approx(NEAR)
    assert entries[0].sim == pytest.approx(np.cos(np.radians(10)), abs=1e-6)


def test_similarity_weighted_by_score(predictions, protocol) -> None:
    entries = rank_gallery(predictions, protocol, 0, SearchOptions(similarity="cws"))
    # 0.9 cos 30 = 0.78, 0.8 cos 20 = 0.75, 0.7 cos 10 = 0.69, 0.6 cos 40 = 0.46
    assert [e.verdict for e in entries] == ["match", "repeat", "other", "other"]
    assert entries[0].sim == pytest.approx(0.9 * np.cos(np.radians(30)), abs=1e-6)


def test_query_without_embedding(predictions, protocol) -> None:
    far = Query(5, 13, tuple(PERSON), 1)  # image 13 has no detection to take it from
    moved = SearchProtocol(**{**vars(protocol), "queries": [far]})
    assert rank_gallery(predictions, moved, 0, SearchOptions(query_source="best_det")) == []


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
