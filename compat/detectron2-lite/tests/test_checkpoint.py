# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other formats, matching of names, and the errors."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.stem.conv1.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(2, 2)
        self.register_buffer("pixel_mean", torch.zeros(3))


def weight(value):
    return np.full((2, 2), value, np.float32)


def load(path, model=None):
    model = model or Net()
    extra = DetectionCheckpointer(model).load(str(path))
    return model, extra


@pytest.mark.parametrize("wrapped", [False, True])
def test_caffe2_backbone(tmp_path, wrapped):
    blobs = {
        "conv1_w": np.ones((4, 3, 3, 3), np.float32),
        "conv1_w_momentum": np.zeros(1, np.float32),
        "res_conv1_bn_s": np.full(4, 2, np.float32),
        "res_conv1_bn_b": np.full(4, 3, np.float32),
        "pred_w": weight(4.0),
    }
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs} if wrapped else blobs))
    model, extra = load(path)
    assert extra["__author__"] == "Caffe2"
    assert (model.stem.conv1.weight == 1).all()
    assert (model.stem.conv1.norm.weight == 2).all() and (model.stem.conv1.norm.bias == 3).all()
    assert (model.linear.weight == 4).all()


def test_model_zoo_file_with_matching(tmp_path):
    path = tmp_path / "zoo.pkl"
    data = {"model": {"conv1.norm.bias": np.full(4, 7, np.float32)}, "__author__": "torchvision"}
    path.write_bytes(pickle.dumps({**data, "matching_heuristics": True}))
    assert (load(path)[0].stem.conv1.norm.bias == 7).all()
    path.write_bytes(pickle.dumps(data))
    assert (load(path)[0].stem.conv1.norm.bias == 0).all()


def test_bare_state_dict_and_query(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save({"weight": torch.full((2, 2), 5.0)}, path)
    model = Net()
    before = model.linear.weight.clone()
    assert torch.equal(load(path, model)[0].linear.weight, before)
    assert (load(f"{path}?matching_heuristics=True")[0].linear.weight == 5).all()
    with pytest.raises(ValueError, match="Unsupported query"):
        load(f"{path}?matching=True")


def test_missing_file_is_an_error_and_empty_path_is_not(tmp_path):
    assert load("")[1] == {}
    with pytest.raises(AssertionError, match="not found"):
        load(tmp_path / "none.pth")


def test_buffers_from_the_config_are_not_missed(tmp_path, caplog):
    state = Net().state_dict()
    del state["pixel_mean"]
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "m.pth")
    load(tmp_path / "m.pth")
    assert [r for r in caplog.records if r.levelname == "WARNING"] == []


def test_resume_prefers_the_last_checkpoint(tmp_path):
    model = Net()
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000003", iteration=3)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 3
    assert checkpointer.resume_or_load("", resume=False) == {}
    silent = DetectionCheckpointer(model, str(tmp_path / "none"), save_to_disk=False)
    silent.save("x")
    assert not (tmp_path / "none").exists()


def test_longest_ending_wins():
    model = {"a.res2.conv1.w": torch.zeros(1), "a.conv1.w": torch.zeros(1)}
    checkpoint = {"conv1.w": torch.tensor([1.0]), "res2.conv1.w": torch.tensor([2.0])}
    result = align_and_update_state_dicts(model, checkpoint, c2_conversion=False)
    assert {k: v.item() for k, v in result.items()} == {"a.conv1.w": 1.0, "a.res2.conv1.w": 2.0}


def test_ending_respects_dots():
    model, checkpoint = {"a.preconv.w": torch.zeros(1)}, {"conv.w": torch.ones(1)}
    assert align_and_update_state_dicts(model, checkpoint, c2_conversion=False) == checkpoint


def test_one_weight_for_two_parameters_is_refused():
    model = {"a.w": torch.zeros(1), "b.w": torch.zeros(1)}
    with pytest.raises(ValueError, match="both match w of the checkpoint"):
        align_and_update_state_dicts(model, {"w": torch.zeros(1)}, c2_conversion=False)
