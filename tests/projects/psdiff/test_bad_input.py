# SPDX-License-Identifier: Apache-2.0
"""Inputs and settings of PSDiff that are wrong, extreme or empty."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from psdiff_tiny import EMBED_DIM, image_input, tiny_model, training_input
from safetensors.numpy import load_file, save_file
from teacher_tiny import paint_persons

from person_search.engine import PersonSearchTrainer, TrainingDivergedError
from person_search.schema import UNLABELED_PID
from psdiff.teachers.embeddings import TeacherEmbeddings, describe_source


def losses_of(model, inputs):
    """Losses with fixed noise; also checks that they and all gradients are finite."""
    torch.manual_seed(0)
    model.zero_grad()
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.isfinite(), name
    for name, parameter in model.named_parameters():
        # processes that train together wait for the gradient of every parameter
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return {name: loss.item() for name, loss in losses.items()}


# ---- ground truths ---------------------------------------------------------------------------
@pytest.mark.parametrize("matcher", ["dynamic_k", "hungarian"])
def test_no_ground_truth(matcher) -> None:
    model = tiny_model(MATCHER=matcher)
    losses = losses_of(model, [training_input(2), training_input(0)])
    assert all(value > 0 for value in losses.values())
    empty = losses_of(model, [training_input(0), training_input(0)])
    assert empty.pop("loss_cls") > 0
    assert set(empty.values()) == {0.0}


@pytest.mark.parametrize("matcher", ["dynamic_k", "hungarian"])
@pytest.mark.parametrize("pad", ["repeat", "noise", "mix"])
def test_more_ground_truths_than_proposals(matcher, pad) -> None:
    model = tiny_model(NUM_PROPOSALS=2, MATCHER=matcher, PAD=pad)
    item = training_input(3)
    assert all(value > 0 for value in losses_of(model, [item]).values())
    target, seen = item["instances"], set()
    for _ in range(20):  # at t = 0 the signal is the ground truth itself
        boxes, _ = model.noisy_proposals([target], torch.tensor([0]))
        distance = (boxes[0, :, None] - target.gt_boxes.tensor).abs().amax(dim=-1)
        chosen = distance.argmin(dim=1).tolist()
        assert distance.amin(dim=1).max() < 1.5 and len(set(chosen)) == 2
        seen |= set(chosen)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("matcher", ["dynamic_k", "hungarian"])
def test_boxes_of_no_area_in_the_model(matcher) -> None:
    """They count like the smallest of boxes: neither left out nor the end of the training."""
    item, nearly = training_input(3), training_input(3)
    model = tiny_model(MATCHER=matcher)
    whole = losses_of(model, [item])
    for target, side in ((item, 0.0), (nearly, 1e-3)):
        boxes = target["instances"].gt_boxes.tensor
        boxes[1, 2:] = boxes[1, :2] + side
        boxes[2] = torch.tensor([0.0, 0.0, side, side])
    losses = losses_of(model, [item])
    assert losses == pytest.approx(losses_of(model, [nearly]), rel=1e-3)
    assert losses["loss_l1"] != pytest.approx(whole["loss_l1"], rel=0.1)
    item["instances"] = item["instances"][[0]]
    assert losses["loss_l1"] != pytest.approx(losses_of(model, [item])["loss_l1"], rel=0.1)


def test_unlabelled_persons_are_imitated_like_the_others() -> None:
    model = tiny_model()
    labelled, unlabelled = training_input(2), training_input(2)
    unlabelled["instances"].gt_pids[:] = UNLABELED_PID
    losses = losses_of(model, [unlabelled])
    assert losses == losses_of(model, [labelled]) and losses["loss_reid"] > 0


# ---- diverging -------------------------------------------------------------------------------
@pytest.mark.parametrize("matcher", ["dynamic_k", "hungarian"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_lost_show_in_the_loss(matcher, value) -> None:
    """And not as an error of the matcher, which could not name the iteration."""
    model = tiny_model(MATCHER=matcher)
    torch.nn.init.constant_(model.head.box_branch[-1].bias, value)
    torch.nn.init.constant_(model.head.cls_branch[-1].bias, value)
    losses = model.train()([training_input(2), training_input(1)])
    assert not sum(losses.values()).isfinite()


def test_a_training_that_diverges_names_its_images(persons, tmp_path) -> None:
    records, cfg = persons
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 3
    trainer = PersonSearchTrainer(cfg)
    torch.nn.init.constant_(trainer.model.head.reid_branch[-1].bias, math.nan)
    with pytest.raises(TrainingDivergedError, match="iteration 0 .*loss_reid nan"):
        trainer.train()
    text = (tmp_path / "out" / "diverged_0000000.json").read_text()
    assert sum(record["file_name"] in text for record in records) == 2


# ---- command line ----------------------------------------------------------------------------
@pytest.fixture
def run(persons, tmp_path, train_net, capsys, monkeypatch):
    """Runs train_net.py in this process; returns the exit status and what it showed."""
    monkeypatch.delenv("PERSON_SEARCH_TRACEBACK", raising=False)
    cfg = persons[1]
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SOLVER.IMS_PER_BATCH = 2
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())

    def run(*arguments: str) -> tuple[int, str]:
        command = ["--num-gpus", "0", "--config-file", str(path), *arguments]
        status = 0
        try:
            train_net.main(command)
        except SystemExit as end:
            status = end.code
        shown = capsys.readouterr()
        return status, shown.out + shown.err

    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rename_data_set(path: Path) -> None:
    """What a teacher wrote for other boxes, under any name."""
    records = paint_persons(path.parent)[:5]
    count = sum(len(r["annotations"]) for r in records)
    source = describe_source("others", records, "abc", "hhcl", "some")
    TeacherEmbeddings.save(str(path), records, np.zeros((count, 2, EMBED_DIM)), source)


def strip(path: Path) -> None:
    """A safetensors file, but not one of embeddings."""
    save_file({"weight": next(iter(load_file(path).values()))}, path)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (Path.unlink, "which is not a file"),
        (cut, "is damaged or not a file of embeddings"),
        (strip, "TEACHER.EMBEDDINGS"),
        (rename_data_set, "was written for data set 'others'"),
    ],
)
def test_a_wrong_teacher_file_is_one_message(run, tmp_path, spoil, text) -> None:
    spoil(tmp_path / "e.safetensors")
    status, shown = run()
    assert status == 2 and "Traceback" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert text in line and "MODEL.PSDIFF.TEACHER.EMBEDDINGS" in line


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("STEPS", "0", "MODEL.PSDIFF.STEPS is 0"),
        ("STEPS", "-3", "MODEL.PSDIFF.STEPS is -3"),
        ("STEPS", "1001", "MODEL.PSDIFF.STEPS is 1001"),
        ("SAMPLER", "euler", "MODEL.PSDIFF.SAMPLER is 'euler'"),
        ("MATCHER", "greedy", "MODEL.PSDIFF.MATCHER is 'greedy'"),
        ("PAD", "zeros", "MODEL.PSDIFF.PAD is 'zeros'"),
        ("NUM_PROPOSALS", "0", "MODEL.PSDIFF.NUM_PROPOSALS is 0"),
        ("TRAIN_DRAWS", "0", "MODEL.PSDIFF.TRAIN_DRAWS is 0"),
        ("MATCHER_TOP_IOUS", "0", "MODEL.PSDIFF.MATCHER_TOP_IOUS is 0"),
    ],
)
def test_a_wrong_setting_is_one_message(run, key, value, text) -> None:
    status, shown = run(f"MODEL.PSDIFF.{key}", value)
    assert status == 2 and "Traceback" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert text in line


def test_an_empty_instances_goes_through_the_noise() -> None:
    model = tiny_model()
    empty = Instances(
        (48, 64), gt_boxes=Boxes(torch.zeros(0, 4)), gt_reid_feats=torch.zeros(0, EMBED_DIM)
    )
    boxes, reid = model.noisy_proposals([empty], torch.tensor([999]))
    assert boxes.shape == (1, 12, 4) and reid.shape == (1, 12, EMBED_DIM)
    assert boxes.isfinite().all() and reid.isfinite().all()


@pytest.mark.parametrize("branch", ["box_branch", "cls_branch", "reid_branch"])
@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_are_lost_end_inference_with_a_message(branch, steps) -> None:
    """Not in the kernel that pools at boxes: it reads anywhere for a box of NaN."""
    model = tiny_model(STEPS=steps).eval()
    assert len(model.head.in_features) > 1
    model.head.pooler.level_poolers = model.head.pooler.level_poolers[:1]
    model.head.in_features = model.head.in_features[:1]  # with one level no box is left out
    model([image_input()])
    torch.nn.init.constant_(getattr(model.head, branch)[-1].bias, math.nan)
    name = {"box_branch": "boxes", "cls_branch": "logits", "reid_branch": "reid_feats"}[branch]
    with pytest.raises(FloatingPointError, match=f"{name}.* at t = 999.*MODEL.WEIGHTS"):
        model([image_input()])


def test_lost_weights_of_the_embedding_show_in_given_boxes() -> None:
    model = tiny_model().eval()
    torch.nn.init.constant_(model.head.reid_branch[-1].bias, math.nan)
    features = model.backbone(torch.zeros(1, 3, 64, 64))
    boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0]])
    with pytest.raises(FloatingPointError, match="reid_feats"):
        model.reverse_process().embed_boxes(features, boxes, seed=0)
