# SPDX-License-Identifier: Apache-2.0
"""The evaluator in Detectron2's loop: metrics, several processes, files, bad input."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from evaluation_cases import ReplayModel, random_case, registered
from evaluation_processes import SEED, evaluate_every_second_image
from slow_reference import ImageDetections, detection_reference, search_reference
from two_processes import run_in_two_processes

from person_search.config import add_person_search_config
from person_search.evaluation import PersonSearchEvaluator, evaluator, report
from person_search.utils import backend_name


@pytest.fixture
def case():
    return random_case(SEED)


@pytest.fixture
def name(case):
    with registered(case) as name:
        yield name


def run(case, evaluator):
    """One evaluation without a model."""
    evaluator.reset()
    inputs = case.inputs()
    evaluator.process(inputs, [case.output(one["image_id"]) for one in inputs])
    return evaluator.evaluate()


def above(case, score):
    """The detections that a score threshold leaves."""
    kept = {}
    for image_id, found in case.dets.items():
        rows = [i for i, value in enumerate(found.scores) if value >= score]
        columns = [[getattr(found, n)[i] for i in rows] for n in ("boxes", "scores", "feats")]
        kept[image_id] = ImageDetections(*columns)
    return kept


def test_through_the_loop_of_detectron2(case, name, tmp_path, caplog):
    by_id = {one["image_id"]: one for one in case.inputs()}
    loader = build_detection_test_loader(
        case.records, mapper=lambda record: by_id[record["image_id"]], num_workers=0
    )
    model = ReplayModel(case).train()
    judge = PersonSearchEvaluator(
        name, output_dir=tmp_path, score_thresh=0.5, protocols=["all", "listed"]
    )
    with caplog.at_level(logging.INFO, logger="person_search.evaluation"):
        results = inference_on_dataset(model, loader, judge)
    assert model.training and not any(model.was_training)
    dets = above(case, 0.5)
    expected = {
        "detection": detection_reference(case.gt, dets),
        "search": search_reference(dets, case.query_feats, case.protocols["all"]),
        "search_listed": search_reference(dets, case.query_feats, case.protocols["listed"]),
    }
    assert list(results) == list(expected)
    for task, metrics in expected.items():
        assert {k: results[task][k] for k in metrics} == pytest.approx(metrics, abs=1e-6)
    assert results["detection"]["num_gt"] == sum(len(r["annotations"]) for r in case.records)
    assert results["detection"]["num_det"] == sum(len(d.boxes) for d in dets.values())
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    for text in (f"{name}: detection AP", "score >= 0.5", "search [all, 4 queries] mAP", " s"):
        assert text in line
    content = json.loads((tmp_path / f"{name}_results.json").read_text())
    assert content["results"]["search"] == pytest.approx(results["search"])
    assert content["backend"] == backend_name()
    assert content["settings"]["similarity"] == "cosine"
    print_csv_format(results)


def test_two_processes_equal_one(case, name, tmp_path):
    run_in_two_processes(evaluate_every_second_image, str(tmp_path))
    results = [json.loads((tmp_path / f"result_{rank}.json").read_text()) for rank in range(2)]
    one = run(case, PersonSearchEvaluator(name, score_thresh=0.5, protocols=["all", "listed"]))
    assert results[1] == {}
    assert set(results[0]) == set(one)
    for task in one:
        assert results[0][task] == pytest.approx(one[task], abs=1e-9)


def test_from_config(case, name, tmp_path):
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.TEST.PERSON_SEARCH.PROTOCOLS = ["others"]
    cfg.TEST.PERSON_SEARCH.TOPK = [1, 2]
    cfg.TEST.PERSON_SEARCH.SIMILARITY = "cws"
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.0
    results = run(case, PersonSearchEvaluator(cfg, name, tmp_path))
    assert list(results["search"]) == ["mAP", "top1", "top2", "recall"]
    expected = search_reference(
        case.dets, case.query_feats, case.protocols["others"], similarity="cws", topk=(1, 2)
    )
    assert results["search"] == pytest.approx(expected, abs=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}_results.json"]
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    run(case, PersonSearchEvaluator(cfg, name))
    assert (tmp_path / "run" / "inference" / f"{name}_results.json").is_file()


def test_default_protocol_and_second_run(case, name):
    judge = PersonSearchEvaluator(name)
    first, second = run(case, judge), run(case, judge)
    assert list(first) == ["detection", "search"]
    assert first == second
    first["search"]["mAP"] = -1.0
    assert judge.score() == second, "the caller's copy is its own"


def test_further_protocols_without_new_inference(case, name, tmp_path):
    judge = PersonSearchEvaluator(
        name, score_thresh=0.0, output_dir=tmp_path, dump_predictions=True
    )
    with pytest.raises(RuntimeError, match="no predictions"):
        judge.score_protocols([case.protocols["all"]])
    results = run(case, judge)
    (scores,) = judge.score_protocols([judge.protocol("all")])
    expected = search_reference(case.dets, case.query_feats, case.protocols["all"])
    assert scores.summary() == pytest.approx(expected, abs=1e-6)
    # the same from the file, with another similarity and a higher cut
    file = tmp_path / f"{name}_predictions.npz"
    later = PersonSearchEvaluator(name, score_thresh=0.0)
    later.load_predictions(file)
    assert later.score() == results
    stricter = PersonSearchEvaluator(name, score_thresh=0.6, similarity="cws")
    stricter.load_predictions(file)
    protocol = case.protocols["listed"]
    expected = search_reference(above(case, 0.6), case.query_feats, protocol, similarity="cws")
    assert stricter.score()["search"] == pytest.approx(expected, abs=1e-6)


def test_loaded_predictions_must_fit(case, name, tmp_path):
    judge = PersonSearchEvaluator(name, score_thresh=0.6)
    run(case, judge)
    judge.save_predictions(tmp_path / "p.npz")
    with pytest.raises(ValueError, match="score >= 0.6 only, but score_thresh is 0.5"):
        PersonSearchEvaluator(name).load_predictions(tmp_path / "p.npz")
    other = random_case(SEED + 1)
    with registered(other, "other_case"):
        with pytest.raises(ValueError, match="its images are not those of 'other_case'"):
            PersonSearchEvaluator("other_case").load_predictions(tmp_path / "p.npz")


def test_full_disk_does_not_lose_the_results(case, name, tmp_path, monkeypatch, caplog):
    def fail(path, write):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(report, "write_atomically", fail)
    judge = PersonSearchEvaluator(name, output_dir=tmp_path)
    with caplog.at_level(logging.INFO, logger="person_search.evaluation"):
        results = run(case, judge)
    assert results["search"]["mAP"] >= 0
    messages = [r.getMessage() for r in caplog.records]
    place = [i for i, m in enumerate(messages) if "No space left" in m]
    assert len(place) == 1 and "_results.json" in messages[place[0]]
    assert any("search [listed" in m for m in messages[: place[0]]), "logged before the write"


def test_output_folder_that_cannot_be_made(case, name, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    results = run(case, PersonSearchEvaluator(name, output_dir=tmp_path / "file" / "sub"))
    assert results and "could not write" in caplog.text


def test_queries_without_a_match_are_counted_once(case, name, caplog):
    protocol = case.protocols["listed"]
    nothing = {"positive_query": [], "positive_image": [], "positive_box": []}
    bare = replace(protocol, name="bare", **{k: np.array(v, "i") for k, v in nothing.items()})
    case.protocols["bare"] = bare
    with registered(case, "bare_case"):
        results = run(case, PersonSearchEvaluator("bare_case", protocols=["bare"]))
    assert set(results["search"].values()) == {0.0}
    warnings = [r.getMessage() for r in caplog.records if "no match in the gallery" in r.message]
    assert len(warnings) == 1 and "4 of 4 queries" in warnings[0]
    assert "[10, 11, 12, 13]" in warnings[0]


def test_no_detections_anywhere(case, name):
    case.dets = {image_id: ImageDetections([], [], []) for image_id in case.dets}
    for source in ("gt_box", "best_det"):
        results = run(case, PersonSearchEvaluator(name, query_source=source))
        assert set(results["search"].values()) == {0.0}
        assert results["detection"]["AP"] == results["detection"]["AP50"] == 0
        assert results["detection"]["num_det"] == 0


def test_undefined_figures_are_null_in_the_file(tmp_path):
    report.write_results(tmp_path / "r.json", {"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}}


def test_low_scores_are_dropped_at_once(case, name):
    judge = PersonSearchEvaluator(name, score_thresh=0.6)
    run(case, judge)
    assert len(judge.predictions.scores) == sum(len(d.boxes) for d in above(case, 0.6).values())
    assert (judge.predictions.scores >= 0.6).all()


def test_collected_tensors_do_not_keep_the_output_alive(case, name):
    output = case.output(next(i for i, d in case.dets.items() if d.boxes))
    instances = output["instances"]
    feats = instances.reid_feats
    collector = evaluator.PredictionCollector(0.0)
    collector.add(0, instances, [], None)
    feats.fill_(9.0)
    assert np.abs(collector.arrays()["reid_feats"]).max() <= 1.0


def image_with(case, what):
    """The first image that has detections, or queries."""
    if what == "queries":
        return next(r["image_id"] for r in case.records if r["queries"])
    return next(i for i, d in case.dets.items() if d.boxes)


def spoil(field, change):
    def apply(output):
        setattr(output["instances"], field, change(getattr(output["instances"], field)))

    return apply


def set_nan(values):
    values = values.clone()
    values[0] = float("nan")
    return values


BAD_OUTPUTS = [
    ("dets", spoil("reid_feats", set_nan), r"reid_feats: not finite in row\(s\) \[0\]"),
    ("dets", spoil("reid_feats", lambda f: 2 * f), "norm 2; the model must return unit vectors"),
    ("dets", spoil("reid_feats", lambda f: f[:, 0]), r"expected \(n, D\)"),
    ("dets", spoil("scores", set_nan), "score is not finite"),
    ("dets", spoil("scores", lambda s: s + 3), r"score is 3\.\d+, must lie in \[0, 1\].*logits"),
    ("dets", lambda o: o["instances"].remove("reid_feats"), r"lack \['reid_feats'\]"),
    ("dets", lambda o: o["instances"].pred_boxes.tensor.fill_(np.nan), "box is not finite"),
    ("queries", lambda o: o.pop("query_feats"), r"0 query_feats for \d+ queries \(query_ids"),
    ("queries", lambda o: o.update(query_feats=o["query_feats"][1:]), "one per query"),
    ("queries", lambda o: o.update(query_feats=o["query_feats"] * 0), "query_feats.*norm 0"),
]


@pytest.mark.parametrize("what, change, message", BAD_OUTPUTS)
def test_bad_output_names_the_image(case, name, what, change, message):
    image_id = image_with(case, what)
    output = case.output(image_id)
    change(output)
    judge = PersonSearchEvaluator(name, score_thresh=0.0)
    judge.reset()
    with pytest.raises(ValueError, match=f"image_id {image_id}.*{message}"):
        judge.process([{"image_id": image_id}], [output])


def test_embeddings_of_another_length(case, name):
    judge = PersonSearchEvaluator(name, score_thresh=0.0)
    judge.reset()
    first, second = [i for i, d in case.dets.items() if d.boxes][:2]
    judge.process([{"image_id": first}], [case.output(first)])
    output = case.output(second)
    instances = output["instances"]
    instances.reid_feats = torch.nn.functional.normalize(torch.ones(len(instances), 7))
    with pytest.raises(
        ValueError, match=f"image_id {second}.*length 7, earlier ones have length 4"
    ):
        judge.process([{"image_id": second}], [output])


def test_images_must_come_exactly_once(case, name):
    judge = PersonSearchEvaluator(name)
    judge.reset()
    first = case.records[0]["image_id"]
    judge.process([{"image_id": first}], [case.output(first)])
    with pytest.raises(ValueError, match=f"image_id {first} was processed before"):
        judge.process([{"image_id": first}], [case.output(first)])
    with pytest.raises(ValueError, match="never processed"):
        judge.evaluate()
    with pytest.raises(ValueError, match=r"image_id 555 \(x.jpg\) is not in data set"):
        judge.process([{"image_id": 555, "file_name": "x.jpg"}], [case.output(first)])


def test_queries_in_another_order(case, name):
    one = next(i for i in case.inputs() if len(i["queries"]))
    one["queries"].query_ids = one["queries"].query_ids + 1
    judge = PersonSearchEvaluator(name)
    judge.reset()
    with pytest.raises(ValueError, match=f"image_id {one['image_id']}: the loader returned"):
        judge.process([one], [case.output(one["image_id"])])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"protocols": ["g100"]}, r"no search protocol \['g100'\].*'all', 'listed', 'others'"),
        ({"similarity": "dot"}, "similarity is 'dot', allowed"),
        ({"duplicates": "none"}, "TEST.PERSON_SEARCH.DUPLICATES"),
        ({"query_source": "x"}, "TEST.PERSON_SEARCH.QUERY_SOURCE"),
        ({"score_thresh": 1.5}, "score_thresh is 1.5"),
        ({"det_iou_thresh": -1}, "DET_IOU_THRESH"),
        ({"topk": [0]}, r"topk is \[0\]"),
        ({"topk": []}, r"topk is \[\]"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        PersonSearchEvaluator(name, **options)


def test_data_set_without_protocols():
    with pytest.raises(
        ValueError,
        match="no search protocols.*register_person_search_json",
    ):
        PersonSearchEvaluator("an_unregistered_data_set")


def test_wrong_protocol_fails_before_the_inference(case):
    case.protocols["listed"].queries[0] = replace(case.protocols["listed"].queries[0], query_id=999)
    with registered(case, "wrong_case"):
        judge = PersonSearchEvaluator("wrong_case")
        with pytest.raises(ValueError, match=r"protocol 'listed': 1 query_id.*\[999\]"):
            judge.reset()


@pytest.mark.parametrize(
    "spoil_records, message",
    [
        (lambda records: records.clear(), "has no records"),
        (lambda records: records[0].pop("queries"), "has no 'queries'"),
        (lambda records: records.append(records[0]), "duplicate image_id"),
    ],
)
def test_wrong_records(case, spoil_records, message):
    spoil_records(case.records)
    with registered(case, "wrong_case"):
        with pytest.raises(ValueError, match=message):
            PersonSearchEvaluator("wrong_case").reset()
