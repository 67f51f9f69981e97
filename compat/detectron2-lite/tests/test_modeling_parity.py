# SPDX-License-Identifier: Apache-2.0
"""The models compute what the real Detectron2 computes.

`record_modeling.py` ran each of its cases on the real one; the numbers are in data/modeling.json.
Same seeds must give the same names, shapes, weights, losses, logged scalars and detections.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load_beside(name):
    """Import a file of this folder, which is no package, by its path."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


inputs = load_beside("modeling_inputs")
recorder = load_beside("record_modeling")
RECORD = json.loads(recorder.DATA_FILE.read_text())


def differences(actual, expected, path=""):
    """Where two nests of numbers differ by more than rounding on another machine explains."""
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or actual.keys() != expected.keys():
            return [f"{path}: {actual} instead of {expected}"]
        pairs = [(key, actual[key], expected[key]) for key in expected]
    elif isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            return [f"{path}: {actual} instead of {expected}"]
        pairs = list(zip(range(len(expected)), actual, expected, strict=True))
    elif isinstance(expected, float):
        same = math.isclose(actual, expected, rel_tol=2e-4, abs_tol=2e-4)
        return [] if same else [f"{path}: {actual} instead of {expected}"]
    else:
        return [] if actual == expected else [f"{path}: {actual} instead of {expected}"]
    return [d for key, a, e in pairs for d in differences(a, e, f"{path}/{key}")]


def test_record_names_its_origin():
    assert RECORD["detectron2_commit"] == recorder.COMMIT


def test_record_and_cases_are_the_same_set():
    assert sorted(RECORD["cases"]) == sorted(recorder.CASES)


@pytest.mark.parametrize("name", recorder.CASES)
def test_case(name):
    actual, expected = inputs.numbers(recorder.CASES[name]()), RECORD["cases"][name]
    drawn = recorder.TRUNCATED_NORMAL
    if drawn in expected and differences(actual[drawn], expected[drawn]):
        pytest.skip(f"torch draws other truncated normal numbers since {RECORD['torch']}, or did")
    assert differences(actual, expected) == []


def test_differences_sees_a_wrong_number():
    expected = {"a": [1.0, {"b": 2}]}
    assert differences({"a": [1.0, {"b": 2}]}, expected) == []
    assert differences({"a": [1.001, {"b": 2}]}, expected) != []
    assert differences({"a": [1.0, {"b": 3}]}, expected) != []
    assert differences({"a": [1.0]}, expected) != []
    assert differences({"a": [1.0, {}]}, expected) != []
