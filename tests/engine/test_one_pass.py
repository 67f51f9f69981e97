# SPDX-License-Identifier: Apache-2.0
"""All figures come from one pass over the images, with a real model and the real mapper."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from tiny_model import register_tiny_dataset, tiny_cfg, unregister_dataset

from person_search.engine import PersonSearchTrainer
from person_search.evaluation import PersonSearchEvaluator

NAME, NUM_IMAGES = "tiny_for_one_pass", 4
TASKS = ["search", "search_all_gt", "search_all_cbgm", "search_all_gt_best_det_strict"]


@pytest.fixture
def cfg(tmp_path: Path):
    register_tiny_dataset(NAME, tmp_path / "images", NUM_IMAGES)
    cfg = tiny_cfg(tmp_path / "out", NAME)
    cfg.MODEL.REID.NUM_PIDS = 3
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.0
    yield cfg
    unregister_dataset(NAME)


def test_every_section_from_one_forward_per_image(cfg, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, calls = build_model(cfg), []
    model.register_forward_pre_hook(lambda _, inputs: calls.extend(inputs[0]))
    plain = PersonSearchTrainer.test(cfg, model)
    assert len(calls) == NUM_IMAGES
    assert [len(x["queries"]) for x in calls] == [1] * NUM_IMAGES
    calls.clear()
    keys = cfg.TEST.PERSON_SEARCH
    keys.VARIANTS = ["gt", "cbgm", "gt+best_det+strict"]
    keys.DET_IOU_THRESHS, keys.DET_SCORE_THRESHS = [0.75], [0.6]
    keys.COCO_AP = keys.DUMP_PREDICTIONS = True
    results = PersonSearchTrainer.test(cfg, model)
    assert len(calls) == NUM_IMAGES
    assert [len(x["queries"]) for x in calls] == [3] * NUM_IMAGES  # and two people
    assert list(results) == [
        "detection",
        "detection_coco",
        "detection_iou75",
        "detection_score60",
        "detection_iou75_score60",
        *TASKS,
    ]
    # what was there before is as before: true boxes do not disturb the queries
    for task in plain:
        assert results[task] == pytest.approx(plain[task], abs=1e-4)
    assert results["search_all_gt"]["recall"] == 100
    assert results["search_all_gt"] == results["search_all_gt_best_det_strict"]
    # and all of it comes out of the file again
    judge = PersonSearchEvaluator(cfg, NAME, tmp_path / "again")
    judge.load_predictions(tmp_path / "out" / "inference" / f"{NAME}_predictions.npz")
    again = judge.score()
    assert {task: again[task] for task in TASKS} == {task: results[task] for task in TASKS}


def test_a_mapper_that_leaves_out_the_true_boxes_is_told(cfg) -> None:
    model = build_model(cfg)
    loader = PersonSearchTrainer.build_test_loader(cfg, NAME)  # of the config without 'gt'
    judge = PersonSearchEvaluator(NAME, variants=["gt"], score_thresh=0.0)
    judge.reset()
    batch = next(iter(loader))
    with torch.no_grad():
        outputs = model.eval()(batch)
    with pytest.raises(
        ValueError, match=r"image_id 0: the loader gave.*2 ground truth boxes \(-1\)"
    ):
        judge.process(batch, outputs)
    del batch[0]["queries"]
    with pytest.raises(
        ValueError, match="1 query_feats for 1 queries .*2 ground truth boxes.*'gt'"
    ):
        judge.process(batch, outputs)
