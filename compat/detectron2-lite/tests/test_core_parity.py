# SPDX-License-Identifier: Apache-2.0
"""Config, structures, layers and data do what the real Detectron2 does.

``record_core.py`` and ``record_data.py`` ran each of their cases on the real one; the results are
in data/core.json and data/data.json.
"""

import importlib.util
import json
import math
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CORE, DATA = _load("record_core"), _load("record_data")
RECORDS = {m: json.loads(m.DATA_FILE.read_text()) for m in (CORE, DATA)}


def differences(actual, expected, path=""):
    """Lists where two nests differ by more than rounding on another machine explains."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        missing = [f"{path}/{key} is in one only" for key in actual.keys() ^ expected.keys()]
        shared = [key for key in expected if key in actual]
        return missing + [
            d for k in shared for d in differences(actual[k], expected[k], f"{path}/{k}")
        ]
    if isinstance(expected, list) and isinstance(actual, list) and len(actual) == len(expected):
        return [
            d
            for i, (a, e) in enumerate(zip(actual, expected, strict=True))
            for d in differences(a, e, f"{path}/{i}")
        ]
    if isinstance(expected, float) and isinstance(actual, (int, float)):
        if math.isclose(actual, expected, rel_tol=1e-4, abs_tol=1e-4):
            return []
        if math.isnan(actual) and math.isnan(expected):
            return []
    elif actual == expected:
        return []
    return [f"{path}: {actual} instead of {expected}"]


@pytest.mark.parametrize("module", RECORDS, ids=lambda m: m.__name__)
def test_record_covers_the_cases(module):
    assert RECORDS[module]["detectron2_commit"] == CORE.COMMIT
    assert sorted(RECORDS[module]["cases"]) == sorted(module.CASES)


@pytest.mark.parametrize(
    ("module", "name"),
    [pytest.param(m, name, id=f"{m.__name__[7:]}-{name}") for m in RECORDS for name in m.CASES],
)
def test_case(module, name):
    actual = json.loads(json.dumps(CORE.plain(module.CASES[name]())))
    assert differences(actual, RECORDS[module]["cases"][name]) == []


def test_differences_sees_what_differs():
    expected = {"a": [1.0, {"b": 2}]}
    assert differences({"a": [1.0, {"b": 2}]}, expected) == []
    for other in ({"a": [1.001, {"b": 2}]}, {"a": [1.0, {"b": 3}]}, {"a": [1.0]}, {"b": 1}):
        assert differences(other, expected) != []
