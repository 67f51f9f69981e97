# SPDX-License-Identifier: Apache-2.0
"""Evaluators, the evaluation loop, and verification of results."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict
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
