# SPDX-License-Identifier: Apache-2.0
"""Ranked lists are those that the figures come from, whatever the protocol and the options."""

import dataclasses
import itertools

import pytest
from evaluation_cases import Case, random_case, registered, with_gt
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import ranked_ap

from person_search.evaluation import PersonSearchEvaluator, SearchOptions, write_predictions
from person_search.evaluation.options import OPTION_VALUES, CbgmSettings
from person_search.evaluation.ranking import rank_query
from person_search.evaluation.search_metrics import evaluate_searches

EVERY_VARIANT = ["+".join(values) for values in itertools.product(*OPTION_VALUES.values())]


def check_lists(predictions, protocol, options, scores) -> int:
    """Works every figure out again from the ranked lists; returns the number of positives."""
    num_positives = 0
    for query in range(len(protocol.queries)):
        entries = rank_query(predictions, protocol, query, options)
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
    predictions, options = with_gt(case), SearchOptions().changed(variant)
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
    base = SearchOptions(iou_thresh=iou_thresh, cbgm=CbgmSettings(*cbgm))
    options = base.changed(variant)
    jobs = [(protocol, options) for protocol in case.protocols.values()]
    for (protocol, _), scores in zip(jobs, evaluate_searches(predictions, jobs), strict=True):
        check_lists(predictions, protocol, options, scores)


def test_lists_of_an_evaluation(tmp_path):
    """The figures of every section of the evaluator itself, all made at once."""
    case: Case = random_case(3, ties=False)
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
            [(e.image_id, e.box, e.sim) for e in rank_query(predictions, protocol, query, options)]
            for query in range(len(protocol.queries))
        ]
        for options in (None, SearchOptions(matching="cbgm"), SearchOptions(gallery_boxes="gt"))
    )
    assert plain != cbgm and plain != gt
    boxes_of = {i: [tuple(box) for box in boxes] for i, boxes in case.gt.items()}
    assert all(box in boxes_of[image] for row in gt for image, box, _ in row)
