# SPDX-License-Identifier: Apache-2.0
"""The report of the trends tool; the trainings themselves are too long for a test."""

import json
from pathlib import Path

import pytest
from programs import load_program

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def tool():
    return load_program("projects/PSDiff/tools/reproduce_trends.py")


def result(mean_ap, ap50=80.0):
    return {"search/mAP": mean_ap, "search/top1": 50.0, "detection/AP50": ap50}


def run(*mean_aps):
    return dict(zip((1, 2, 4, 8), map(result, mean_aps), strict=True))


RESULTS = {
    "parallel": {1: run(30, 31, 32, 33), 2: run(36, 36, 36, 35)},
    "cascaded": {2: run(22, 23, 24, 26)},
    "skip": {2: run(38, 39, 40, 44), 1: run(31, 32, 33, 37), 3: run(1, 2, 3, 4)},
}


def trend(tool, better, worse):
    return tool.Trend("claim", better, worse)


def test_only_seeds_of_both_sides_are_compared(tool) -> None:
    values = tool.differences(trend(tool, ("skip", 8), ("parallel", 8)), RESULTS)
    assert values == [4, 9]
    assert tool.verdict(values) == "holds"


@pytest.mark.parametrize(
    ("better", "worse", "differences", "text"),
    [
        (("parallel", 8), ("parallel", 1), [3, -1], "holds on average"),
        (("parallel", 8), ("skip", 8), [-4, -9], "does not hold"),
        (("skip", 8), ("imitation", 8), [], "not measured"),
        (("cascaded", 8), ("cascaded", 1), [4], "holds (one seed)"),
        (("cascaded", 8), ("parallel", 8), [-9], "does not hold (one seed)"),
    ],
)
def test_verdicts(tool, better, worse, differences, text) -> None:
    values = tool.differences(trend(tool, better, worse), RESULTS)
    assert values == differences
    assert tool.verdict(values) == text


def test_mean_and_spread_of_the_sample(tool) -> None:
    assert tool.mean_and_spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert tool.mean_and_spread([5.0]) == "5.0"
    assert tool.signed([-4.0, -2.0]) == "-3.0 ± 1.4"
    assert tool.signed([4.0]) == "+4.0"


def test_report_has_every_variant_and_every_trend(tool, tmp_path) -> None:
    text = tool.write_report(tmp_path, RESULTS)
    assert (tmp_path / "trends.md").read_text() == text
    assert "| parallel | 2 | 8 | 34.0 ± 1.4 | 50.0 ± 0.0 | 80.0 ± 0.0 |" in text
    assert text.index("| skip |") < text.index("| parallel |")
    record = json.loads((tmp_path / "trends.json").read_text())
    assert [t["claim"] for t in record["trends"]] == [t.claim for t in tool.TRENDS]


def test_every_side_of_a_trend_is_a_variant_with_a_config(tool) -> None:
    variants = {*tool.MAIN_VARIANTS, *tool.OTHER_VARIANTS}
    sides = [side for t in tool.TRENDS for side in (t.better, t.worse)]
    assert {name for name, _ in sides} == variants
    assert {steps for _, steps in sides} <= set(tool.STEPS)
    for variant in variants:
        assert (ROOT / tool.CONFIGS / f"{variant}.yaml").is_file()
