# SPDX-License-Identifier: Apache-2.0
"""Names of sections, several options in one pass, and what is refused."""

import json

import numpy as np
import pytest
from evaluation_cases import random_case, with_gt
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import search_reference

from person_search.config import default_config
from person_search.evaluation import evaluate_search
from person_search.evaluation.search_metrics import evaluate_searches
from person_search.evaluation.settings import (
    OPTION_VALUES,
    EvaluationSettings,
    SearchOptions,
    settings_from_config,
)


def test_sections_are_named_predictably():
    sections = EvaluationSettings(variants=["cbgm", "cws+cbgm", "gt"]).sections(["g100", "g50"])
    assert [s.task for s in sections] == [
        "search",
        "search_g100_cbgm",
        "search_g100_cws_cbgm",
        "search_g100_gt",
        "search_g50",
        "search_g50_cbgm",
        "search_g50_cws_cbgm",
        "search_g50_gt",
    ]
    assert sections[0].options == SearchOptions()
    assert sections[2].options == SearchOptions(similarity="cws", matching="cbgm")
    assert sections[7].protocol == "g50" and sections[7].options.gallery_boxes == "gt"


def test_no_value_belongs_to_two_options():
    values = [value for allowed in OPTION_VALUES.values() for value in allowed]
    assert len(values) == len(set(values))


@pytest.mark.parametrize(
    ("variants", "text"),
    [
        (["cbgn"], r"variant 'cbgn': unknown value 'cbgn'.*'cbgm'.*VARIANTS"),
        (["cws+"], "unknown value ''"),
        (["cws+cosine"], "'cws' and 'cosine' are both values of similarity"),
        (["gt", "gt"], r"variant \['gt'\] is named twice"),
    ],
)
def test_wrong_variants(variants, text):
    with pytest.raises(ValueError, match=text):
        EvaluationSettings(variants=tuple(variants))


@pytest.mark.parametrize("name", list(OPTION_VALUES))
def test_wrong_values(name):
    with pytest.raises(ValueError, match=f"{name} is 'wrong', allowed.*{name.upper()}"):
        SearchOptions(**{name: "wrong"})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), ties=st.booleans())
def test_several_options_at_once_equal_each_alone(seed, ties):
    case = random_case(seed, ties=ties)
    predictions = with_gt(case)
    variants = ["cws", "best_det+strict", "gt", "gt+best_det", "cbgm", "gt+cbgm+cws"]
    jobs = [
        (protocol, SearchOptions().with_variant(variant))
        for protocol in case.protocols.values()
        for variant in ("plain", *variants)
    ]
    for job, scores in zip(jobs, evaluate_searches(predictions, jobs), strict=True):
        (alone,) = evaluate_searches(predictions, [job])
        np.testing.assert_array_equal(scores.ap, alone.ap)
        np.testing.assert_array_equal(scores.best_rank, alone.best_rank)
        assert scores.name == job[0].name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), source=st.sampled_from(["gt_box", "best_det"]))
def test_true_boxes_equal_the_literal_implementation(seed, source):
    case = random_case(seed)
    for protocol in case.protocols.values():
        (scores,) = evaluate_search(
            with_gt(case), [protocol], gallery_boxes="gt", query_source=source
        )
        expected = search_reference(
            case.on_gt_boxes(), case.query_feats, protocol, query_source=source
        )
        assert scores.summary() == pytest.approx(expected, abs=1e-6)


def test_true_boxes_must_have_been_embedded():
    case = random_case(1)
    with pytest.raises(ValueError, match="no embeddings of the ground truth boxes.*VARIANTS"):
        evaluate_search(case.pooled(), [case.protocols["all"]], gallery_boxes="gt")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"cbgm_k1": 0}, "k1 is 0.*TEST.PERSON_SEARCH.CBGM.K1"),
        ({"cbgm_k2": 1.5}, "k2 is 1.5"),
        ({"cbgm_mode": "sum"}, "mode is 'sum', allowed.*CBGM.MODE"),
    ],
)
def test_wrong_cbgm_parameters(wrong, text):
    with pytest.raises(ValueError, match=text):
        SearchOptions(**wrong)


def test_every_setting_is_a_config_key():
    keys = default_config().TEST.PERSON_SEARCH
    settings = settings_from_config(keys)
    assert set(keys) - {"CBGM", "PROTOCOLS", "DUMP_PREDICTIONS"} == {
        name.upper() for name in settings if not name.startswith("cbgm_")
    }
    assert settings["cbgm_k1"] == settings["cbgm_k2"] == 0
    built = EvaluationSettings(**settings | {"cbgm_k1": 10, "cbgm_k2": 3})
    # the tuples of the class are lists in the config
    default, found = (json.loads(json.dumps(vars(one))) for one in (EvaluationSettings(), built))
    assert found == default
