# SPDX-License-Identifier: Apache-2.0
"""The results of lite equal those recorded from the real Detectron2.

The functions in ``CASES`` of the modules ``record_*.py`` were run with the real one; the results
are in data/*.json. Checkpoints are loaded in both directions: a training saved by one package
resumes in the other with the same result.
"""

import json
import math

import pytest
import record_core
import record_data
import record_engine
import record_modeling
from modeling_inputs import numbers

ENGINE_CASES = {case.__name__: case for case in record_engine.CASES}
# recorded by record_engine in addition to its cases
RESUMED = {"resumed from real", "resumed from lite"}
# module -> file, cases, conversion of results, tolerance
MODULES = {
    record_core: (record_core.DATA_FILE, record_core.CASES, record_core.plain, 1e-4),
    record_data: (record_data.DATA_FILE, record_data.CASES, record_core.plain, 1e-4),
    record_engine: (record_engine.DATA / "engine.json", ENGINE_CASES, lambda value: value, 1e-5),
    record_modeling: (record_modeling.DATA_FILE, record_modeling.CASES, numbers, 2e-4),
}
RECORDS = {module: json.loads(MODULES[module][0].read_text()) for module in MODULES}


def differences(actual, expected, tolerance=1e-5, path=""):
    """Returns the paths at which two nested values differ by more than the tolerance."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if actual.keys() != expected.keys():
            return [f"{path}: keys {sorted(actual)} instead of {sorted(expected)}"]
        pairs = [(key, actual[key], expected[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(actual) != len(expected):
            return [f"{path}: {len(actual)} items instead of {len(expected)}: {actual}"]
        pairs = [(i, a, e) for i, (a, e) in enumerate(zip(actual, expected, strict=True))]
    elif isinstance(expected, float) and isinstance(actual, int | float):
        same = math.isclose(actual, expected, rel_tol=tolerance, abs_tol=tolerance)
        both_nan = math.isnan(actual) and math.isnan(expected)
        return [] if same or both_nan else [f"{path}: {actual} instead of {expected}"]
    else:
        return [] if actual == expected else [f"{path}: {actual!r} instead of {expected!r}"]
    return [line for key, a, e in pairs for line in differences(a, e, tolerance, f"{path}/{key}")]


def as_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_record_covers_the_cases(module):
    assert RECORDS[module]["detectron2_commit"] == record_core.COMMIT
    assert RECORDS[module]["cases"].keys() - RESUMED == MODULES[module][1].keys()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        pytest.param(module, name, id=f"{module.__name__.removeprefix('record_')}-{name}")
        for module in MODULES
        for name in MODULES[module][1]
    ],
)
def test_case(module, name):
    _, cases, convert, tolerance = MODULES[module]
    actual, expected = as_json(convert(cases[name]())), RECORDS[module]["cases"][name]
    key = record_modeling.TRUNCATED_NORMAL
    if key in expected and differences(actual[key], expected[key], tolerance):
        pytest.skip("this version of torch has different truncated normal random numbers")
    assert differences(actual, expected, tolerance) == []


def test_resume_from_a_checkpoint_of_detectron2():
    recorded = RECORDS[record_engine]["cases"]
    result = record_engine.resume_from(recorded["training"]["checkpoint"])
    assert result[0] == 14
    assert differences(as_json(result), recorded["resumed from real"]) == []


def test_detectron2_resumed_from_a_checkpoint_of_lite():
    recorded = RECORDS[record_engine]["cases"]
    start, weights = recorded["resumed from lite"]
    assert start == 14
    assert differences(weights, recorded["resumed from real"][1]) == []
    checkpoint = json.loads(record_engine.LITE_CHECKPOINT.read_text())
    assert differences(checkpoint, recorded["training"]["checkpoint"]) == []


def test_differences_are_found():
    expected = {"a": [1.0, {"b": 2}]}
    assert differences({"a": [1.0, {"b": 2}]}, expected) == []
    for other in ({"a": [1.001, {"b": 2}]}, {"a": [1.0, {"b": 3}]}, {"a": [1.0]}, {"b": 1}):
        assert differences(other, expected) != []
