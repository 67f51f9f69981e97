# SPDX-License-Identifier: Apache-2.0
"""Sheets of searches from saved predictions of a tiny data set."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import run_program_file
from tiny_model import register_tiny_dataset, tiny_cfg, tiny_protocol, unregister_dataset

from person_search.evaluation import PooledPredictions, chance_level, write_predictions

DATASET = "tiny_for_sheets"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[list[dict]]:
    yield register_tiny_dataset(DATASET, tmp_path / "images")
    unregister_dataset(DATASET)


def perfect_predictions(records: list[dict], dataset: str = DATASET) -> PooledPredictions:
    """All ground truth boxes, with embeddings of the identities and a little noise."""
    rng = np.random.default_rng(0)
    annotations = [a for record in records for a in record["annotations"]]
    pids = np.array([a["person_id"] for a in annotations])
    feats = np.eye(3)[pids] + rng.normal(0, 0.1, (len(pids), 3))
    feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
    counts = [len(record["annotations"]) for record in records]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return PooledPredictions(
        image_ids=np.array([record["image_id"] for record in records]),
        det_offsets=offsets,
        boxes=np.array([a["bbox"] for a in annotations], np.float32),
        scores=np.ones(len(pids), np.float32),
        reid_feats=feats,
        query_ids=np.array([record["queries"][0]["query_id"] for record in records]),
        query_feats=feats[offsets[:-1]],
        info={"dataset": dataset, "score_thresh": 0.0},
    )


@pytest.fixture
def visualize(records, tmp_path) -> Callable[..., int]:
    """Returns ``run(*more)``: the program on predictions without errors."""
    (tmp_path / "config.yaml").write_text(tiny_cfg(tmp_path, DATASET).dump())
    write_predictions(perfect_predictions(records), tmp_path / "p.npz")

    def run(*more: object, predictions: str = "p.npz") -> int:
        return run_program_file(
            "tools/visualize_search.py", "--config-file", tmp_path / "config.yaml",
            "--predictions", tmp_path / predictions, "--output", tmp_path / "out", *more,
        )  # fmt: skip

    return run


def test_sheets_and_chance(visualize, records, tmp_path, capsys) -> None:
    assert visualize() == 0
    out = tmp_path / "out"
    # no query fails, so there is no example of a failure
    assert sorted(p.name for p in out.iterdir()) == ["chance.json", "search_1.jpg", "search_2.jpg"]
    for path in out.glob("*.jpg"):
        with Image.open(path) as sheet:
            assert sheet.format == "JPEG" and sheet.width > 1000
        assert path.stat().st_size < 600_000
    chance = json.loads((out / "chance.json").read_text())
    assert chance == chance_level(tiny_protocol(records), perfect_predictions(records))
    printed = capsys.readouterr().out
    assert "query" in printed and "success" in printed and "rank 1." in printed
    before = (out / "search_1.jpg").read_bytes()
    assert visualize() == 0
    assert (out / "search_1.jpg").read_bytes() == before


def test_chosen_queries(visualize, tmp_path, capsys) -> None:
    assert visualize("--query-id", 4, 2, "--top", 2) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "search_1.jpg: query 4" in printed[0] and "search_2.jpg: query 2" in printed[1]
    assert not (tmp_path / "out" / "search_3.jpg").exists()


def test_another_section(visualize, records, tmp_path, capsys) -> None:
    """The list is that of the protocol and the options asked for, and so is the chance level."""
    predictions = perfect_predictions(records)
    gt = {
        "gt_offsets": predictions.det_offsets,
        "gt_boxes": predictions.boxes,
        "gt_feats": np.roll(predictions.reid_feats, 1, axis=1),  # all look like another person
    }
    write_predictions(PooledPredictions(**{**vars(predictions), **gt}), tmp_path / "gt.npz")
    assert visualize("--protocol", "all", "--variant", "cws+cbgm", predictions="gt.npz") == 0
    printed = capsys.readouterr().out
    assert "success" in printed and "other persons of the query image" in printed
    assert visualize("--variant", "gt", predictions="gt.npz") == 0
    printed = capsys.readouterr().out
    assert "failure" in printed and "success" not in printed and "are the ground truth" in printed
    assert json.loads((tmp_path / "out" / "chance.json").read_text())["recall"] == 100


def test_failures_are_named(visualize, records, tmp_path, capsys) -> None:
    predictions = perfect_predictions(records)
    wrong = np.roll(predictions.query_feats, 1, axis=1)  # every query looks like another person
    write_predictions(
        PooledPredictions(**{**vars(predictions), "query_feats": wrong}), tmp_path / "wrong.npz"
    )
    assert visualize(predictions="wrong.npz") == 0
    printed = capsys.readouterr().out
    assert "failure" in printed and "success" not in printed


@pytest.mark.parametrize(
    ("more", "predictions", "text"),
    [
        (("--query-id", 77), "p.npz", "--query-id: 1 query_id(s) are missing"),
        (("--top", 0), "p.npz", "--top is 0"),
        ((), "absent.npz", "absent.npz"),
        ((), "config.yaml", "is not a complete predictions file"),
        (("DATASETS.TEST", "('a','b')"), "p.npz", "must name the evaluated set"),
        (("TEST.PERSON_SEARCH.PROTOCOLS", "['g7']"), "p.npz", "has no search protocol ['g7']"),
        (("--protocol", "g7"), "p.npz", "has no search protocol ['g7']"),
        (("--variant", "cbgn"), "p.npz", "unknown value 'cbgn'"),
        (("--variant", "gt"), "p.npz", "no embeddings of the ground truth boxes"),
    ],
)
def test_wrong_input(more, predictions, text, visualize, capsys) -> None:
    # options of the config come last on the command line
    assert visualize(*more, predictions=predictions) == 2
    errors = capsys.readouterr().err
    assert text in errors and "Traceback" not in errors
