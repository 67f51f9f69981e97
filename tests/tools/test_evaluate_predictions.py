# SPDX-License-Identifier: Apache-2.0
"""Tables, files and plots from saved predictions, and wrong use."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from evaluation_cases import random_case, registered, with_gt
from PIL import Image
from programs import run_program_file
from slow_reference import search_reference

from person_search.evaluation import PersonSearchEvaluator, write_predictions

NAME = "tool_case"
ALL = ("--", "TEST.PERSON_SEARCH.SCORE_THRESH", 0.0)


@pytest.fixture
def case():
    case = random_case(4, ties=False)
    listed = case.protocols["listed"]
    padded = np.concatenate([listed.gallery, np.full((len(listed.queries), 2), -1)], axis=1)
    larger = dataclasses.replace(listed, name="g9", gallery=padded.astype(np.int32))
    case.protocols = {"g7": dataclasses.replace(listed, name="g7"), "g9": larger}
    with registered(case, NAME):
        yield case


@pytest.fixture
def file(case, tmp_path) -> Path:
    p = with_gt(case)
    path = tmp_path / "mine_predictions.npz"
    write_predictions(dataclasses.replace(p, info={"dataset": NAME, "score_thresh": 0.0}), path)
    return path


@pytest.fixture
def run(capsys):
    """Returns ``run(*arguments)``: exit status, output and errors of the program."""

    def run(*arguments) -> tuple[int, str, str]:
        code = run_program_file("tools/evaluate_predictions.py", "--predictions", *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_table_of_the_default_protocol(run, file):
    code, printed, errors = run(file)
    assert code == 0, errors
    assert f"mine on {NAME}" in printed
    judge = PersonSearchEvaluator(NAME)
    judge.load_predictions(file)
    metrics = judge.score()["search"]
    row = [line.split() for line in printed.splitlines() if line.startswith("search ")][-1]
    assert [float(value) for value in row[1:]] == pytest.approx(list(metrics.values()), abs=0.006)


def test_several_files_protocols_and_options_with_plots(run, file, case, tmp_path):
    other = tmp_path / "b.npz"
    p = dataclasses.replace(with_gt(case), info={"dataset": NAME})
    write_predictions(dataclasses.replace(p, reid_feats=-p.reid_feats), other)
    out = tmp_path / "out"
    code, printed, errors = run(
        file, other, "--names", "mine", "theirs", "--protocols", "every", "--variants", "cbgm",
        "gt", "--output", out, "--plots", "TEST.PERSON_SEARCH.SCORE_THRESH", 0.0,
        "TEST.PERSON_SEARCH.DET_IOU_THRESHS", "[0.75]", "TEST.PERSON_SEARCH.COCO_AP", "True",
    )  # fmt: skip
    assert code == 0, errors
    tasks = ["search", "search_g7_cbgm", "search_g7_gt", "search_g9", "search_g9_cbgm"]
    for name in ("mine", "theirs"):
        content = json.loads((out / name / f"{NAME}_results.json").read_text())
        found = list(content["results"])
        assert found[:3] == ["detection", "detection_coco", "detection_iou75"]
        assert found[3:] == [*tasks, "search_g9_gt"]
        assert content["settings"]["cbgm"] == {"k1": 10, "k2": 3, "mode": "max"}
    assert printed.count("search_g9_gt") == 2 and "detection_iou75" in printed
    for plot in ("gallery_size", "search_precision_recall", "detection_precision_recall"):
        content = (out / f"{plot}.png").read_bytes()
        assert f"{plot}.png" in printed
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "PNG" and min(image.size) > 600
            assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_threshold_of_the_overlap(run, file, case, tmp_path):
    """Chosen on the command line, used for the metrics and stored with them."""
    found = {}
    for name, options in (
        ("half", ()),
        ("lax", ("--search-iou", 0.1)),
        ("hard", ("--search-iou", 0.9)),
    ):
        out = tmp_path / name
        code, _, errors = run(file, "--variants", "fixed", "--output", out, *options, *ALL)
        assert code == 0, errors
        content = json.loads((out / "mine" / f"{NAME}_results.json").read_text())
        metrics = content["results"]["search"], content["results"]["search_g7_fixed"]
        found[name] = content["settings"]["search_iou_thresh"], *[f["recall"] for f in metrics]
    for name, thresh in (("half", 0.5), ("lax", 0.1), ("hard", 0.9)):
        expected = [
            search_reference(case.dets, case.query_feats, case.protocols["g7"], overlap=overlap)
            for overlap in (("adaptive", thresh), ("fixed", thresh))
        ]
        assert found[name] == pytest.approx((thresh, *[e["recall"] for e in expected]))
    assert found["lax"][2] > found["hard"][2]


def test_protocols_without_files_are_skipped(run, file):
    def absent():
        raise FileNotFoundError("TestG4000.mat does not exist")

    MetadataCatalog.get(NAME).search_protocols["g4000"] = absent
    code, printed, _ = run(file, "--protocols", "every")
    assert code == 0 and "skipping protocol g4000" in printed and "search_g9" in printed
    code, _, errors = run(file, "--protocols", "g4000")
    assert code == 2 and "TestG4000.mat does not exist" in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.npz"], "absent.npz"),
        (["FILE", "--dataset", "no_such_test"], "unknown test set 'no_such_test'"),
        (["FILE", "--dataset", "no_such_test"], NAME),
        (["FILE", "--protocols", "g50"], "has no search protocol ['g50']"),
        (["FILE", "--variants", "cbgn"], "unknown value 'cbgn'"),
        (["FILE", "--plots"], "--plots requires --output"),
        (["FILE", "--search-iou", "0"], "must lie in (0, 1]"),
        (["FILE", "FILE"], "different names are needed"),
        (["FILE", "--names", "a", "b"], "1 different names are needed"),
        (["FILE", "--", "TEST.PERSON_SEARCH.CBMG.K1", "3"], "Did you mean"),
        (["FILE", "--variants", "cbgm", "--", "TEST.PERSON_SEARCH.CBGM.K1", "-1"], "k1 is -1"),
    ],
)
def test_wrong_use(run, file, arguments, text, monkeypatch):
    monkeypatch.delenv("PERSON_SEARCH_TRACEBACK", raising=False)
    code, _, errors = run(*[file if a == "FILE" else a for a in arguments])
    assert code == 2
    assert text in errors and "Traceback" not in errors


def test_a_file_of_an_unknown_data_set(run, case, tmp_path):
    path = tmp_path / "p.npz"
    write_predictions(case.pooled(), path)  # made on 'case'
    code, _, errors = run(path)
    assert code == 2 and "unknown test set 'case'" in errors and "--dataset" in errors


def test_table_of_minimum_similarities(run, file):
    code, printed, errors = run(file, "--open-set")
    assert code == 0, errors
    assert "queries for persons who may be absent" in printed
    assert "(FPIR)" in printed and "(TPIR)" in printed
    rows = [line.split() for line in printed.strip().splitlines()]
    metrics = [[float(cell) for cell in row] for row in rows[-6:-1] if len(row) == 3]
    assert len(metrics) == 5 and metrics == sorted(metrics, key=lambda row: -row[0])
    assert all(fpir <= most for (_, fpir, _), most in zip(metrics, (1, 5, 10, 20, 50), strict=True))


def test_an_output_that_is_a_file(run, file, tmp_path):
    """The metrics are printed all the same."""
    code, printed, errors = run(file, "--output", file)
    assert code == 2 and f"mine on {NAME}" in printed
    assert f"the results of ['mine'] could not be written to {file}" in errors
