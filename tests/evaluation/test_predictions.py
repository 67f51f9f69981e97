# SPDX-License-Identifier: Apache-2.0
"""Pooling over processes, predictions files of this and other programs, and what is refused."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from evaluation_cases import random_case, registered

from person_search.evaluation import (
    PersonSearchEvaluator,
    evaluate_search,
    read_predictions,
    write_predictions,
)
from person_search.evaluation.predictions import ARRAY_NAMES, find_rows, pool_predictions


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
        (
            [part([1, 2], [1, 1]), part([2, 3], [1, 1])],
            r"image_id \[2\] was processed more than once",
        ),
        ([part([1], [1])], r"2 of 3 test images were never processed.*\[2, 3\]"),
        ([part([1], [1]), part([2, 3], [1, 0], dim=5)], r"different lengths: \[2, 5\]"),
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
    monkeypatch.setattr("person_search.evaluation.predictions.FORMAT_VERSION", 99)
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
    with pytest.raises(ValueError, match=r"here: 2 number\(s\) are missing.*\[5, 40\]"):
        find_rows(table, [40, 10, 5, 40], "number", "here")
    with pytest.raises(ValueError, match="1 number"):
        find_rows(np.zeros(0, np.int64), [1], "number", "here")
    assert find_rows(np.zeros(0, np.int64), [], "number", "here").tolist() == []


# ---- files and data sets ----
NAME = "file_case"


@pytest.fixture
def case():
    case = random_case(4, ties=False)
    with registered(case, NAME):
        yield case


def entries(case) -> dict[str, np.ndarray]:
    """The entries of a good file, without the optional ones."""
    p = case.pooled()
    header = {"format": "person_search_predictions", "version": 1, "info": {"dataset": NAME}}
    names = ("image_ids", "det_offsets", "boxes", "scores", "reid_feats", "query_ids")
    return {
        "header": np.array(json.dumps(header)),
        **{name: getattr(p, name).copy() for name in (*names, "query_feats")},
    }


def with_gt(case) -> dict[str, np.ndarray]:
    found = list(case.on_gt_boxes().values())
    return entries(case) | {
        "gt_offsets": np.cumsum([0] + [len(d.boxes) for d in found]),
        "gt_boxes": np.array([b for d in found for b in d.boxes], "f"),
        "gt_feats": np.array([f for d in found for f in d.feats], "f"),
    }


def score(path, content, **settings):
    np.savez(path, **content)
    evaluator = PersonSearchEvaluator(NAME, score_thresh=0.0, **settings)
    evaluator.load_predictions(path)
    return evaluator.score()


def expected(case, **settings):
    evaluator = PersonSearchEvaluator(NAME, score_thresh=0.0, **settings)
    evaluator.reset()
    with_gt = evaluator.settings.needs_gt_boxes
    inputs = case.inputs(with_gt)
    outputs = [case.output(one["image_id"], with_gt) for one in inputs]
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def test_a_plain_file_gives_the_figures_of_the_evaluation(case, tmp_path):
    assert score(tmp_path / "p.npz", entries(case)) == expected(case)


def test_names_alone_in_any_order(case, tmp_path):
    content = entries(case)
    ids = content.pop("image_ids")
    counts = np.diff(content["det_offsets"])
    starts = content["det_offsets"][:-1]
    order = np.random.default_rng(0).permutation(len(ids))
    rows = np.concatenate([np.arange(starts[i], starts[i] + counts[i]) for i in order])
    content["image_names"] = np.array([f"some/folder/image_{ids[i]}.jpg" for i in order])
    content["det_offsets"] = np.concatenate([[0], np.cumsum(counts[order])])
    for name in ("boxes", "scores", "reid_feats"):
        content[name] = content[name][rows]
    assert score(tmp_path / "p.npz", content) == expected(case)


def test_true_boxes_from_model_and_file(case, tmp_path):
    settings = {"variants": ["gt", "gt+best_det"], "protocols": ["all"]}
    results = expected(case, **settings)
    assert list(results) == ["detection", "search", "search_all_gt", "search_all_gt_best_det"]
    assert results["search_all_gt"] != results["search"]
    again = score(tmp_path / "p.npz", with_gt(case), **settings)
    for task in results:
        assert again[task] == pytest.approx(results[task])
    with pytest.raises(ValueError, match="no embeddings of the ground truth boxes.*leave 'gt' out"):
        score(tmp_path / "p.npz", entries(case), **settings)


def test_own_file_with_true_boxes_can_be_read_again(case, tmp_path):
    evaluator = PersonSearchEvaluator(
        NAME, score_thresh=0.0, variants=["gt"], output_dir=tmp_path, dump_predictions=True
    )
    evaluator.reset()
    inputs = case.inputs(with_gt=True)
    evaluator.process(inputs, [case.output(one["image_id"], with_gt=True) for one in inputs])
    results = evaluator.evaluate()
    evaluator.load_predictions(tmp_path / f"{NAME}_predictions.npz")
    assert evaluator.score() == results


def test_half_precision_and_a_detector_without_query_embeddings(case, tmp_path):
    content = entries(case)
    for name in ("reid_feats", "query_feats"):
        content[name] = content[name].astype(np.float16)
    whole, half = expected(case), score(tmp_path / "p.npz", content)
    assert half["search"]["recall"] == whole["search"]["recall"]
    content |= {"query_ids": np.zeros(0, np.int64), "query_feats": np.zeros((0, 0))}
    results = score(tmp_path / "p.npz", content, query_source="best_det")
    best_det = expected(case, query_source="best_det")
    assert results["search"]["recall"] == best_det["search"]["recall"]
    with pytest.raises(ValueError, match=r"query_id\(s\) are missing"):
        score(tmp_path / "p.npz", content)


def change(name, function):
    def apply(content):
        content[name] = function(content[name])

    return apply


def set_nan(values):
    values[1] = np.nan
    return values


def header(**changes):
    content = {"format": "person_search_predictions", "version": 1, "info": {"dataset": NAME}}
    return lambda _: np.array(json.dumps(content | changes))


def xywh(boxes):
    return np.concatenate([boxes[:, :2] + 50, boxes[:, 2:] - boxes[:, :2]], axis=1)


WRONG = [
    (change("boxes", set_nan), r"'boxes': 1 rows are not finite, first: \[1\]"),
    (change("scores", set_nan), r"'scores': 1 rows are not finite"),
    (change("reid_feats", set_nan), r"'reid_feats': 1 rows are not finite"),
    (change("boxes", xywh), r"end before they start, first: row \d+.*x, y, width, height\?"),
    (change("boxes", lambda b: b * 3), "% of the boxes extend far beyond.*the resized image"),
    (change("boxes", lambda b: b[:, :3]), r"'boxes' has shape \(\d+, 3\), expected \(n, 4\)"),
    (
        change("reid_feats", lambda f: f * 0.5),
        "unit vectors, but .* are not, first: row 0 with norm 0.5.*'cws'",
    ),
    (change("reid_feats", lambda f: f[:, 0]), r"'reid_feats' has shape.*expected \(n, D\)"),
    (change("query_feats", lambda f: np.eye(4, 7)), "different lengths.*'query_feats': 7"),
    (change("scores", lambda s: s[1:]), "'scores' has shape"),
    (change("scores", lambda s: s.astype(str)), "'scores' must contain numbers"),
    (change("det_offsets", lambda o: o + 0.5), "'det_offsets' must contain integers"),
    (change("det_offsets", lambda o: o[::-1]), "'det_offsets' must rise from 0"),
    (change("det_offsets", lambda o: o[:0]), "'det_offsets' has shape"),
    (change("image_ids", lambda i: i + 1000), r"images are missing from the file, first"),
    (change("image_ids", lambda i: np.append(i[1:], i[1])), "contains duplicates"),
    (change("query_ids", lambda i: np.append(i[1:], i[1])), "'query_ids' contains duplicates"),
    (change("query_ids", lambda i: i + 1000), r"4 query_id\(s\) are missing"),
    (lambda c: c.pop("scores"), r"\['scores'\] are missing; it has"),
    (lambda c: c.pop("image_ids"), r"\['image_ids'\] are missing"),
    (lambda c: c.pop("header"), r"\['header'\] are missing"),
    (change("header", lambda h: np.array("{")), "is not a complete predictions file"),
    (change("header", lambda h: np.array("[1]")), "its header is not a JSON object"),
    (change("header", header(version=2)), r"has format \('person_search_predictions', 2\)"),
    (change("header", header(info={"dataset": "x"})), "made on 'x'.*by name.*'image_names'"),
    (
        change("header", header(info={"score_thresh": 0.4})),
        "score >= 0.4 only, but score_thresh is 0.0",
    ),
    (lambda c: c.update(image_names=np.arange(len(c["image_ids"]))), "must contain text"),
    (
        lambda c: c.update(image_names=np.array(["a.jpg"] * len(c["image_ids"]))),
        r"image_id \d+ is 'a.jpg' in the file and 'image_\d+.jpg' in the data set",
    ),
    (
        lambda c: c.update(image_names=np.array([f"{i}" for i in c.pop("image_ids")])),
        r"it lacks \d+ of them, first",
    ),
]


@pytest.mark.parametrize(("spoil", "text"), WRONG)
def test_wrong_files_are_refused(case, tmp_path, spoil, text):
    content = entries(case)
    spoil(content)
    with pytest.raises(ValueError, match=text) as error:
        score(tmp_path / "p.npz", content)
    assert "p.npz" in str(error.value)


def test_true_boxes_in_another_order_are_refused(case, tmp_path):
    content = with_gt(case)
    content["gt_boxes"] = content["gt_boxes"][::-1]
    with pytest.raises(ValueError, match="'gt_boxes' are not the .* in the order of the annot"):
        score(tmp_path / "p.npz", content)


def test_names_with_folders_of_windows_and_decomposed_accents(case, tmp_path):
    for record in case.records:
        record["file_name"] = f"frames/caf\u00e9_{record['image_id']}.jpg"
    content = entries(case)
    ids = content.pop("image_ids")
    content["image_names"] = np.array([f"C:\\data\\cafe\u0301_{i}.jpg" for i in ids])
    assert score(tmp_path / "p.npz", content) == expected(case)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_refused_wherever_the_damage_is(save, case, tmp_path):
    path = tmp_path / "p.npz"
    save(path, **entries(case))
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.5, 0.9, 0.99):
        place = int(share * len(whole))
        path.write_bytes(whole[:place])  # truncated
        with pytest.raises(ValueError, match="p.npz is not a complete predictions file"):
            read_predictions(path)
        path.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])  # overwritten
        try:
            read_predictions(path)
        except ValueError as e:
            assert "p.npz" in str(e)


def test_pickled_content_is_refused(case, tmp_path):
    content = entries(case) | {"scores": np.array([{"a": 1}], object)}
    np.savez(tmp_path / "p.npz", **content)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"boxes": 1}))
    for name in ("p.npz", "p.pkl"):
        with pytest.raises(ValueError, match=f"{name} is not a complete predictions file.*pickle"):
            read_predictions(tmp_path / name)


def test_byte_order_of_another_machine(case, tmp_path):
    content = entries(case)
    swapped = {n: a.astype(a.dtype.newbyteorder()) for n, a in content.items() if a.ndim}
    assert score(tmp_path / "p.npz", content | swapped) == expected(case)


def test_a_single_array_is_not_a_predictions_file(tmp_path):
    np.save(tmp_path / "p.npy", np.zeros(3))
    with pytest.raises(ValueError, match="it contains a single array"):
        read_predictions(tmp_path / "p.npy")
