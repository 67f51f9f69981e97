# SPDX-License-Identifier: Apache-2.0
"""Evaluators, the inference loop, COCO results, and their errors."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn


class Collect(DatasetEvaluator):
    def __init__(self, task="task"):
        self.task = task

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += zip(inputs, outputs, strict=True)

    def evaluate(self):
        return {self.task: {"count": len(self.seen)}}


class Mode(nn.Module):
    def forward(self, batch):
        return [(self.training, torch.is_grad_enabled()) for _ in batch]


def test_model_runs_in_eval_mode_and_gets_its_mode_back():
    model, evaluator, calls = Mode(), Collect(), []
    callbacks = {"on_start": lambda: calls.append("start"), "on_end": lambda: calls.append("end")}
    results = inference_on_dataset(model, [[1, 2], [3]], evaluator, callbacks=callbacks)
    assert results == {"task": {"count": 3}}
    assert {output for _, output in evaluator.seen} == {(False, False)}
    assert model.training and calls == ["start", "end"]


def test_several_evaluators_or_none():
    evaluators = [Collect("a"), Collect("b")]
    assert list(inference_on_dataset(Mode(), [[1]], evaluators)) == ["a", "b"]
    assert inference_on_dataset(Mode(), [[1]], None) == {}
    same = DatasetEvaluators([Collect(), Collect()])
    same.reset()
    with pytest.raises(AssertionError, match="two evaluators .* 'task'"):
        same.evaluate()


def test_results_are_flattened_and_checked():
    assert flatten_results_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {
        "a/b": 1,
        "a/c/d": 2,
        "e": 3,
    }
    print_csv_format({"bbox": {"AP": math.nan}})
    cfg = get_cfg()
    assert verify_results(cfg, {})
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 38.0, 0.2]]
    assert verify_results(cfg, {"bbox": {"AP": 38.1}})
    for value in (38.3, math.nan):
        with pytest.raises(SystemExit):
            verify_results(cfg, {"bbox": {"AP": value}})


@pytest.fixture
def boxes_dataset():
    name = "evaluation_test_boxes"
    box = {"bbox": [10, 10, 60, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    records = [
        {"file_name": "", "image_id": i, "height": 100, "width": 100, "annotations": [box]}
        for i in (1, 2)
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["person"])
    yield name, records
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def detections(boxes, scores):
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.zeros(len(scores), dtype=torch.int64)
    return {"instances": instances}


def evaluate(name, records, outputs, folder):
    evaluator = COCOEvaluator(name, distributed=False, output_dir=str(folder))
    evaluator.reset()
    evaluator.process(records, outputs)
    return evaluator.evaluate()


def test_perfect_boxes_score_100(boxes_dataset, tmp_path):
    name, records = boxes_dataset
    perfect = detections([[10.0, 10.0, 60.0, 60.0]], [0.9])
    results = evaluate(name, records, [perfect, perfect], tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert math.isnan(results["bbox"]["APs"])
    assert {p.name for p in tmp_path.iterdir()} >= {
        "coco_instances_results.json",
        "instances_predictions.pth",
    }


def test_one_of_two_found(boxes_dataset, tmp_path):
    name, records = boxes_dataset
    # The only detection is right; half of the boxes are found: precision is 1 at recalls up to
    # 0.5, 51 of COCO's 101 points.
    found = detections([[10.0, 10.0, 60.0, 60.0]], [0.9])
    results = evaluate(name, records, [found, detections([], [])], tmp_path)
    assert results["bbox"]["AP50"] == pytest.approx(100 * 51 / 101)


def test_nothing_found_is_nan(boxes_dataset, tmp_path):
    name, records = boxes_dataset
    results = evaluate(name, records, [detections([], [])] * 2, tmp_path)
    assert math.isnan(results["bbox"]["AP"])
    assert evaluate(name, [], [], tmp_path) == {}


def test_folder_is_needed_for_other_formats(boxes_dataset):
    with pytest.raises(ValueError, match="output_dir must be provided"):
        COCOEvaluator(boxes_dataset[0])
