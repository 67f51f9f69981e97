# SPDX-License-Identifier: Apache-2.0
"""The slim ResNet: declared and actual shapes, refused settings."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

import person_search.modeling  # noqa: F401  registers the backbones
from person_search.config import add_person_search_config


def slim_cfg(name="build_slim_resnet_fpn_backbone"):
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.SLIM_RESNET.STEM_WIDTH = 4
    cfg.MODEL.SLIM_RESNET.WIDTHS = [8, 12, 16]
    cfg.MODEL.SLIM_RESNET.BLOCKS = [1, 2, 1]
    cfg.MODEL.FPN.OUT_CHANNELS = 10
    return cfg


@pytest.mark.parametrize(
    "name, expected",
    [
        ("build_slim_resnet_backbone", {"res2": (8, 4), "res3": (12, 8), "res4": (16, 16)}),
        ("build_slim_resnet_fpn_backbone", {"p2": (10, 4), "p3": (10, 8), "p4": (10, 16)}),
    ],
)
def test_declared_shapes_are_the_real_ones(name, expected):
    backbone = build_backbone(slim_cfg(name))
    declared = {key: (s.channels, s.stride) for key, s in backbone.output_shape().items()}
    assert declared == expected
    features = backbone(torch.randn(2, 3, 32, 64))
    for key, (channels, stride) in expected.items():
        assert features[key].shape == (2, channels, 32 // stride, 64 // stride)


def test_fpn_over_chosen_stages():
    cfg = slim_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    assert list(build_backbone(cfg).output_shape()) == ["p3", "p4"]


def test_nothing_is_frozen_and_every_weight_learns():
    backbone = build_backbone(slim_cfg())
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, 32, 32)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad and parameter.grad is not None, name


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SLIM_RESNET.NORM", "FrozenBN", "cannot be 'FrozenBN'"),
        ("SLIM_RESNET.BLOCKS", [1, 1], "one entry per stage"),
        ("SLIM_RESNET.WIDTHS", [8, 8, 16], "neighbors must differ"),
        ("FPN.IN_FEATURES", ["res3", "res6"], r"names \['res6'\]"),
    ],
)
def test_wrong_settings_name_their_key(key, value, message):
    cfg = slim_cfg()
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(cfg)
    assert "MODEL." in str(error.value)
