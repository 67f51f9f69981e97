# SPDX-License-Identifier: Apache-2.0
"""Pooling over processes, the file of predictions, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_cases import random_case

from person_search.evaluation import evaluate_search, read_predictions, write_predictions
from person_search.evaluation.prediction_file import ARRAY_NAMES
from person_search.evaluation.predictions import (
    find_rows,
    pool_predictions,
)


def part(image_ids, counts, *, dim=2, query_ids=()):
    """What one process hands over; every detection carries its image id as score."""
    num = sum(counts)
    owner = np.repeat(image_ids, counts)
    return {
        "image_ids": np.array(image_ids, np.int64),
        "det_counts": np.array(counts, np.int64),
        "boxes": np.tile(np.arange(4, dtype=np.float32), (num, 1)),
        "scores": owner.astype(np.float32),
        "reid_feats": np.full((num, dim), 0.5, np.float32),
        "query_ids": np.array(query_ids, np.int64),
        "query_feats": np.repeat(np.array(query_ids, np.float32)[:, None], dim, axis=1),
    }


def test_pooling_restores_the_order_of_the_data_set():
    parts = [part([4, 9], [2, 1], query_ids=[7]), part([1, 6], [0, 3], query_ids=[3])]
    pooled = pool_predictions(parts, np.array([1, 4, 6, 9]), {})
    assert pooled.image_ids.tolist() == [1, 4, 6, 9]
    assert pooled.det_offsets.tolist() == [0, 0, 2, 5, 6]
    assert pooled.scores.tolist() == [4, 4, 6, 6, 6, 9]
    assert pooled.query_ids.tolist() == [3, 7]
    assert pooled.query_feats[:, 0].tolist() == [3, 7]


def test_a_process_may_have_seen_nothing():
    nothing = part([], [], dim=0)
    pooled = pool_predictions([part([4], [2]), nothing], np.array([4]), {})
    assert pooled.embed_dim == 2 and len(pooled.boxes) == 2
    empty = pool_predictions([part([4], [0], dim=0), nothing], np.array([4]), {})
    assert empty.reid_feats.shape == (0, 0)


@pytest.mark.parametrize(
    "parts, message",
    [
        ([part([1, 2], [1, 1]), part([2, 3], [1, 1])], r"image_id \[2\] came more than once"),
        ([part([1], [1])], r"2 of 3 test images were never processed.*\[2, 3\]"),
        ([part([1], [1]), part([2, 3], [1, 0], dim=5)], r"different length: \[2, 5\]"),
    ],
)
def test_pooling_refuses(parts, message):
    with pytest.raises(ValueError, match=message):
        pool_predictions(parts, np.array([1, 2, 3]), {})


def test_saved_file_gives_the_same_figures(tmp_path):
    case = random_case(2)
    pooled = case.pooled()
    path = tmp_path / "new" / "predictions.npz"
    write_predictions(pooled, path)
    loaded = read_predictions(path)
    for name in ARRAY_NAMES:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(pooled, name))
    assert loaded.info == pooled.info
    protocols = list(case.protocols.values())
    before, after = evaluate_search(pooled, protocols), evaluate_search(loaded, protocols)
    assert [s.summary() for s in before] == [s.summary() for s in after]
    assert [p.name for p in path.parent.iterdir()] == ["predictions.npz"]


def test_loading_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_predictions(tmp_path / "none.npz")
    for name, content in (("text.npz", b"hello"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a complete predictions file"):
            read_predictions(tmp_path / name)
    np.savez(tmp_path / "other.npz", boxes=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz is not a complete predictions file"):
        read_predictions(tmp_path / "other.npz")
    whole = tmp_path / "whole.npz"
    write_predictions(random_case(2).pooled(), whole)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:500])
    with pytest.raises(ValueError, match="cut.npz is not a complete"):
        read_predictions(tmp_path / "cut.npz")


def test_loading_refuses_another_version(tmp_path, monkeypatch):
    path = tmp_path / "new.npz"
    monkeypatch.setattr("person_search.evaluation.prediction_file.FORMAT_VERSION", 99)
    write_predictions(random_case(2).pooled(), path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="99.*expected.*Run the evaluation again"):
        read_predictions(path)


def test_cut_at_a_higher_score():
    pooled = pool_predictions([part([1, 2, 3], [2, 1, 1])], np.array([1, 2, 3]), {"a": 1})
    above = pooled.above(2.0)
    assert above.det_offsets.tolist() == [0, 0, 1, 2]
    assert above.scores.tolist() == [2, 3]
    assert above.info == {"a": 1, "score_thresh": 2.0}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": np.zeros((5, 4))}, "'det_offsets' must rise|'scores' has shape"),
        ({"scores": np.zeros(2)}, "'scores' has shape"),
        ({"query_feats": np.zeros((1, 3))}, "'query_feats' has shape"),
        ({"det_offsets": np.array([0, 3, 2, 4])}, "must rise from 0 to 4"),
    ],
)
def test_arrays_must_fit_together(change, message):
    pooled = pool_predictions([part([1, 2, 3], [2, 1, 1])], np.array([1, 2, 3]), {})
    with pytest.raises(ValueError, match=message):
        replace(pooled, **change)


def test_find_rows():
    table = np.array([30, 10, 20])
    assert find_rows(table, [20, 30, 20], "number", "here").tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match=r"here: 2 number\(s\) are not there.*\[5, 40\]"):
        find_rows(table, [40, 10, 5, 40], "number", "here")
    with pytest.raises(ValueError, match="1 number"):
        find_rows(np.zeros(0, np.int64), [1], "number", "here")
    assert find_rows(np.zeros(0, np.int64), [], "number", "here").tolist() == []
