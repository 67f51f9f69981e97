# SPDX-License-Identifier: Apache-2.0
"""Optimized models must equal the original in float32 and stay close to it in low precision."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import build_resnet_backbone
from psdiff_tiny import tiny_cfg
from torch import nn

from person_search.modeling.optimize import (
    choose_precision,
    fold_batch_norms,
    optimize_for_inference,
    supported_precisions,
    to_contiguous,
)
from person_search.modeling.winograd import WinogradConv2d


class Detector(nn.Module):
    """A backbone and a part that must keep float32."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        cfg = get_cfg()
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
        cfg.MODEL.RESNETS.NORM = norm
        self.backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        self.last = nn.Linear(512, 8)

    def forward(self, x):
        features = self.backbone(x)
        return features["res2"], self.last(features["res5"].mean((2, 3)))


@pytest.fixture(params=["FrozenBN", "BN", "GN"])
def detector(request) -> Detector:
    model = Detector(request.param).eval()
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2.0)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.uniform_(-0.2, 0.2)
    return model


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_float32_equals_the_original(detector, batch) -> None:
    x = torch.randn(batch, 3, 64, 96)
    for mine, wanted in zip(
        optimize_for_inference(detector, "float32")(x), detector(x), strict=True
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
        assert mine.is_contiguous() and mine.dtype == torch.float32


@torch.no_grad()
def test_wide_convolutions_of_a_resnet_fpn_are_winograds() -> None:
    """Also those that Detectron2's FPN calls from lists; low precision keeps the direct ones."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res4", "res5"]
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.OUT_CHANNELS = "build_resnet_fpn_backbone", 128
    torch.manual_seed(0)
    model = nn.ModuleDict({"backbone": build_backbone(cfg)})
    fast, x = optimize_for_inference(model.eval(), "float32"), torch.randn(1, 3, 64, 96)
    called = []
    for layer in fast.backbone.modules():
        if isinstance(layer, WinogradConv2d):
            layer.register_forward_hook(lambda *args: called.append(args[0]))
    for name, maps in fast.backbone(x).items():
        torch.testing.assert_close(maps, model.backbone(x)[name], rtol=1e-4, atol=1e-4)
    # of each stage all but the one with stride 2, and two outputs of the FPN
    assert len(set(called)) == len(called) == 3 * 3 + 2
    low = optimize_for_inference(model, "bfloat16").backbone.modules()
    assert not any(isinstance(layer, WinogradConv2d) for layer in low)


@torch.no_grad()
def test_an_image_is_not_copied(detector) -> None:
    """The copy would stay until the end, but its layout is that of the maps from there on."""
    x, seen = torch.randn(1, 3, 64, 96), []
    fast = optimize_for_inference(detector, "float32")
    fast.backbone.register_forward_pre_hook(lambda module, args: seen.append(*args))
    fast.backbone.stem.register_forward_hook(lambda module, args, out: seen.append(out))
    fast(x)
    assert seen[0].data_ptr() == x.data_ptr()
    assert seen[1].is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_bfloat16_is_close_and_float32_outside(detector, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    x = torch.randn(1, 3, 64, 96)
    fast = optimize_for_inference(detector, "bfloat16")
    assert next(fast.backbone.parameters()).dtype == torch.bfloat16
    assert fast.last.weight.dtype == torch.float32
    mine, wanted = fast(x)[1], detector(x)[1]
    assert mine.dtype == torch.float32 and not torch.equal(mine, wanted)
    assert torch.cosine_similarity(mine, wanted).min() > 0.99


def test_the_original_is_unchanged_and_shares_the_other_parts(detector) -> None:
    before = copy.deepcopy(detector.state_dict())
    trainable = [p.requires_grad for p in detector.parameters()]
    fast = optimize_for_inference(detector, "float32")
    assert detector.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert [p.requires_grad for p in detector.parameters()] == trainable
    assert fast.last is detector.last and fast.backbone is not detector.backbone


def test_norms_are_folded_where_they_are_constant(detector) -> None:
    norms = sum(isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d) for m in detector.modules())
    assert fold_batch_norms(copy.deepcopy(detector)) == norms
    detector.train()
    frozen = sum(isinstance(m, FrozenBatchNorm2d) for m in detector.modules())
    assert fold_batch_norms(detector) == frozen, "a batch norm in training mode is not constant"


@torch.no_grad()
def test_norms_in_a_sequence_are_folded() -> None:
    parts = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    model = nn.Sequential(*parts, nn.ReLU(), nn.BatchNorm2d(4)).eval()
    for norm in (model[1], model[5]):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 9, 9)
    wanted = model(x)
    assert fold_batch_norms(model) == 1, "between the last convolution and its norm is a ReLU"
    assert isinstance(model[1], nn.Identity) and isinstance(model[5], nn.BatchNorm2d)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


def test_auto_keeps_float32_where_low_precision_changes_results(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    model = build_model(tiny_cfg()).eval()
    assert choose_precision("auto", "cpu", model) == torch.float32
    assert choose_precision("bfloat16", "cpu", model) == torch.bfloat16
    assert choose_precision("auto", "cpu", nn.Identity()) == torch.bfloat16


@torch.no_grad()
def test_psdiff_finds_the_same_persons() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).eval()
    image = {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}
    (mine,) = optimize_for_inference(model, "float32")([image])
    (wanted,) = model([image])
    mine, wanted = mine["instances"], wanted["instances"]
    assert len(wanted) > 0
    torch.testing.assert_close(mine.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=1e-2, rtol=0)
    torch.testing.assert_close(mine.reid_feats, wanted.reid_feats, atol=1e-4, rtol=0)


def test_eager_is_the_model_itself(detector) -> None:
    assert optimize_for_inference(detector, "eager") is detector


def test_a_model_without_parameters_or_backbone_is_left_as_it_is() -> None:
    fast = optimize_for_inference(nn.Sequential(nn.Identity()), "bfloat16")
    assert torch.equal(fast(torch.ones(2)), torch.ones(2))


def test_outermost_backbones_are_optimized() -> None:
    """A model may keep its backbone anywhere, and an FPN contains another backbone."""
    model = build_model(tiny_cfg()).eval()
    outer = nn.ModuleDict({"detector": model, "other": nn.Linear(2, 2)}).eval()
    fast = optimize_for_inference(outer, "float32")
    assert fast["detector"].backbone is not model.backbone
    assert fast["detector"].backbone.bottom_up is not model.backbone.bottom_up
    assert fast["detector"].head.cdl is model.head.cdl and fast["other"] is outer["other"]
    assert len(fast["detector"].backbone._forward_hooks) == 1
    assert not fast["detector"].backbone.bottom_up._forward_hooks, "converted once, not twice"


def test_precision_is_chosen_by_the_device(monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert choose_precision("auto", "cpu") == torch.float32
    with caplog.at_level("WARNING", logger="person_search"):
        for _ in range(2):
            assert choose_precision("float16", "cpu") == torch.float32
    assert caplog.text.count("cpu has no fast float16; float32 is used instead") == 1
    for flag in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flag=flag: {flag: True})
        assert choose_precision("auto", "cpu") == torch.bfloat16
    for capability, fastest in (((9, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        assert supported_precisions("cuda:0")[0] == fastest
    with pytest.raises(ValueError, match="'half'; choose from eager, auto, float32"):
        choose_precision("half", "cpu")


@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (3, 2, 1, 7), (0, 2, 3, 4), (2, 3)])
def test_contiguous_copies(shape) -> None:
    x = torch.randn(shape)
    other = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x.t()
    assert to_contiguous(other).is_contiguous() and torch.equal(to_contiguous(other), other)
