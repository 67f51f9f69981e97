# SPDX-License-Identifier: Apache-2.0
"""Solver, checkpoints, engine, evaluation and utils do what the real Detectron2 does.

`record_engine.py` ran each of its cases on the real one; the results are in data/engine.json.
Checkpoints cross in both directions: a training saved by either goes on in the other as if
nothing had happened.
"""

import json
import math

import pytest
import record_engine

RECORDED = json.loads((record_engine.DATA / "engine.json").read_text())["cases"]


def differences(actual, expected, path=""):
    """Where two nests differ by more than rounding on another machine explains."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if actual.keys() != expected.keys():
            return [f"{path}: keys {sorted(actual)} instead of {sorted(expected)}"]
        pairs = [(key, actual[key], expected[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(actual) != len(expected):
            return [f"{path}: {len(actual)} items instead of {len(expected)}: {actual}"]
        pairs = [(i, a, e) for i, (a, e) in enumerate(zip(actual, expected, strict=True))]
    elif isinstance(expected, float) and isinstance(actual, float):
        same = math.isclose(actual, expected, rel_tol=1e-5, abs_tol=1e-6)
        both_nan = math.isnan(actual) and math.isnan(expected)
        return [] if same or both_nan else [f"{path}: {actual} instead of {expected}"]
    else:
        return [] if actual == expected else [f"{path}: {actual!r} instead of {expected!r}"]
    return [line for key, a, e in pairs for line in differences(a, e, f"{path}/{key}")]


def as_json(value):
    """The same value after a trip through a file: tuples become lists, keys strings."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("case", record_engine.CASES, ids=lambda case: case.__name__)
def test_same_as_recorded(case):
    assert differences(as_json(case()), RECORDED[case.__name__]) == []


def test_goes_on_from_the_real_ones_checkpoint():
    result = record_engine.resume_from(RECORDED["training"]["checkpoint"])
    assert result[0] == 14
    assert differences(as_json(result), RECORDED["resumed from real"]) == []


def test_real_one_went_on_from_our_checkpoint():
    # Recorded: the real one, given a checkpoint of lite and one of its own, ended the same.
    start, weights = RECORDED["resumed from lite"]
    assert start == 14
    assert differences(weights, RECORDED["resumed from real"][1]) == []
    ours = json.loads(record_engine.LITE_CHECKPOINT.read_text())
    assert differences(ours, RECORDED["training"]["checkpoint"]) == []
