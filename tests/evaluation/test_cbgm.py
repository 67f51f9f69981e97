# SPDX-License-Identifier: Apache-2.0
"""Context bipartite graph matching: by hand, and against trying every matching."""

import dataclasses

import numpy as np
import pytest
from evaluation_cases import Case, make_record, random_case
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import ImageDetections, best_matching, search_reference

from person_search.evaluation import evaluate_search
from person_search.evaluation.cbgm import companions, first_highest, match_query
from person_search.evaluation.search_metrics import evaluate_searches
from person_search.evaluation.settings import SearchOptions
from person_search.schema import Query, SearchProtocol

PERSON, FRIEND, OTHER = [0, 0, 50, 100], [60, 0, 110, 100], [120, 0, 170, 100]


def unit(*values):
    return (np.array(values, float) / np.linalg.norm(values)).tolist()


def make_case() -> Case:
    """The query walks with a friend. In image 1 both are seen, in image 2 a look-alike alone."""
    boxes = [[float(v) for v in box] for box in (PERSON, FRIEND, OTHER)]
    records = [
        make_record(0, boxes[:2], [7, 8], [(1, boxes[0])]),
        make_record(1, boxes[:2], [7, 8], []),
        make_record(2, boxes[:1], [9], []),
    ]
    person, friend = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    dets = {
        0: ImageDetections(boxes[:2], [0.9, 0.8], [person, friend]),
        1: ImageDetections(boxes[:2], [0.9, 0.9], [unit(0.6, 0.0, 0.8), unit(0.0, 0.95, 0.3)]),
        2: ImageDetections(boxes[:1], [0.9], [unit(0.7, 0.0, 0.714)]),
    }
    protocol = SearchProtocol(
        name="hand",
        queries=[Query(1, 0, tuple(boxes[0]), 7)],
        gallery=np.array([[1, 2]], np.int32),
        positive_query=np.zeros(1, np.int32),
        positive_image=np.ones(1, np.int32),
        positive_box=np.array(boxes[:1], np.float32),
    )
    return Case(records, dets, {1: person}, {"hand": protocol})


def score(case, **cbgm):
    options = SearchOptions(matching="cbgm", **{f"cbgm_{k}": v for k, v in cbgm.items()})
    return evaluate_searches(case.pooled(), [(case.protocols["hand"], options)])[0].ap[0]


def test_a_friend_lifts_the_right_image():
    case = make_case()
    (plain,) = evaluate_search(case.pooled(), [case.protocols["hand"]])
    assert plain.ap[0] == 0.5  # 0.70 for the look-alike, 0.60 for the person
    # image 1: query - person 0.60, friend - friend 0.95; the person's similarity becomes 0.95
    assert score(case, k1=2, k2=2) == 1.0
    assert score(case, k1=2, k2=2, mode="mean") == 1.0  # (0.95 + 0.60) / 2 = 0.78
    assert score(case, k1=1, k2=2) == 0.5  # only the look-alike's image is matched again
    assert score(case, k1=2, k2=1) == 0.5  # the query alone: nothing can change


def test_companions_leave_out_the_query_itself():
    case = make_case()
    query = case.protocols["hand"].queries[0]
    pooled = case.pooled()
    assert companions(pooled, query, 0, 3).tolist() == [1]
    assert companions(pooled, query, 0, 1).tolist() == []
    # the detection that represents the query is not a companion, wherever it is
    assert companions(pooled, query, 0, 3, query_det=1).tolist() == []
    tied = dataclasses.replace(pooled, boxes=pooled.boxes + 200, scores=np.ones(5, np.float32))
    assert companions(tied, query, 0, 3).tolist() == [0, 1]


def test_more_people_than_detections_may_leave_the_query_alone():
    graph = np.array([[0.2], [0.9]], np.float32)
    assert match_query(graph, np.array([5])) is None
    assert match_query(graph[::-1], np.array([5])) == (5, np.float32(0.9))
    assert best_matching(graph.tolist()) == [(1, 0)]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 1.0]), min_size=1, max_size=9),
    count=st.integers(1, 10),
)
def test_first_highest_is_a_stable_sort(values, count):
    expected = sorted(sorted(range(len(values)), key=lambda i: -values[i])[:count])
    assert first_highest(np.array(values), count).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cbgm=st.tuples(st.integers(1, 12), st.integers(1, 3), st.sampled_from(["max", "mean"])),
    similarity=st.sampled_from(["cosine", "cws"]),
    source=st.sampled_from(["gt_box", "best_det"]),
    duplicates=st.sampled_from(["seqnet", "strict"]),
)
def test_equals_brute_force(seed, cbgm, similarity, source, duplicates):
    # without ties: of two equally good matchings either is right
    case = random_case(seed, ties=False, num_images=6)
    options = SearchOptions(
        similarity=similarity,
        matching="cbgm",
        query_source=source,
        duplicates=duplicates,
        **dict(zip(("cbgm_k1", "cbgm_k2", "cbgm_mode"), cbgm, strict=True)),
    )
    protocols = list(case.protocols.values())
    found = evaluate_searches(case.pooled(), [(protocol, options) for protocol in protocols])
    for protocol, scores in zip(protocols, found, strict=True):
        expected = search_reference(
            case.dets, case.query_feats, protocol, similarity, duplicates, source, cbgm=cbgm
        )
        assert scores.summary() == pytest.approx(expected, abs=1e-6), protocol.name
