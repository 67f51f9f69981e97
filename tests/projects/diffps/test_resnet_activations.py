# SPDX-License-Identifier: Apache-2.0
"""DiffPS without a prior: the trainable ResNet in the place of the frozen model."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from diffps_model_tiny import tiny_cfg, training_input
from diffps_tiny import tiny_backbone


@pytest.fixture
def cfg():
    cfg = tiny_cfg("not read")
    cfg.MODEL.BACKBONE.NAME = "ResNetActivations"
    cfg.MODEL.SLIM_RESNET.STEM_WIDTH = 4
    cfg.MODEL.SLIM_RESNET.WIDTHS = [4, 6, 8, 10]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.DIFFPS.RESNET.CHANNELS = [32, 24, 16]
    cfg.MODEL.DIFFPS.RESNET.TEXT_DIM = 32
    cfg.MODEL.DIFFPS.DGRPN.ENABLED = False
    return cfg


def test_same_activations_as_the_tiny_diffusion_model(cfg, tiny_sd) -> None:
    frozen = tiny_backbone(tiny_sd).output_shape()
    assert frozen.pop("attn") == ShapeSpec(channels=1, stride=8)
    backbone = build_backbone(cfg)
    assert backbone.output_shape() == frozen
    # 100 x 130 pixels become 128 x 192
    features = backbone(torch.rand(2, 3, 100, 130))
    assert list(features) == list(frozen)
    for name, x in features.items():
        stride = frozen[name].stride
        assert x.shape == (2, frozen[name].channels, 128 // stride, 192 // stride)


def test_everything_in_it_trains(cfg) -> None:
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.roi_heads.reid_head.oim.lut.normal_()  # re-ID has no gradient while it is empty
    with EventStorage():
        sum(model([training_input(), training_input(seed=1)]).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.backbone.parameters())


def test_word_vectors_are_always_the_same(cfg) -> None:
    a, b = (build_backbone(cfg).word_vectors(["head", "shoes"]) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (2, 32)
    torch.testing.assert_close(a.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DGRPN.ENABLED", True, "DGRPN.ENABLED False"),
        ("RESNET.CHANNELS", [32], "three entries"),
        ("BACKBONE.OUT_FEATURES", ["u0r1_q"], "'u0r1_q'"),
    ],
)
def test_what_it_cannot_give_is_refused(cfg, key, value, message) -> None:
    cfg.merge_from_list([f"MODEL.DIFFPS.{key}", value])
    with pytest.raises(ValueError, match=message):
        build_backbone(cfg)
