# SPDX-License-Identifier: Apache-2.0
"""Models of timm as FPN backbones: shapes, frozen parts, weights of other layouts."""

import pytest
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone

from person_search.config import add_person_search_config
from person_search.modeling.timm_fpn import TimmBackbone, create_timm_net, load_timm_weights

pytest.importorskip("timm")


def timm_cfg(name: str, features=("res3", "res4", "res5"), **changes) -> CfgNode:
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = list(features), 16
    cfg.MODEL.TIMM.NAME = name
    for key, value in changes.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


@pytest.mark.parametrize(
    "name", ["mobilenetv2_035", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224",
             "pvt_v2_b0"],
)  # fmt: skip
def test_shapes_and_gradients(name) -> None:
    backbone = build_backbone(timm_cfg(name))
    outputs = backbone(torch.randn(1, 3, 64, 96))
    assert list(outputs) == ["p3", "p4", "p5", "p6"][: len(outputs)]
    for level, feature in list(outputs.items())[:3]:
        stride = 2 ** int(level[1])
        assert feature.shape == (1, 16, 64 // stride, 96 // stride)
    sum(feature.sum() for feature in outputs.values()).backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "trained parameters without gradient"


def test_frozen_stages_and_norms() -> None:
    backbone = build_backbone(timm_cfg("resnet18", FROZEN_STAGES=2, NORM="frozen")).bottom_up
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert all(n.startswith(("net.layer2.", "net.layer3.", "net.layer4.")) for n in trained)
    assert not [n for n in trained if ".bn" in n] and "net.layer2.0.conv1.weight" in trained
    norms = [m for m in backbone.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)


def test_stages_behind_the_last_feature_are_not_trained() -> None:
    backbone = build_backbone(timm_cfg("resnet18", features=["res2", "res3"])).bottom_up
    assert not any(p.requires_grad for p in backbone.net.layer4.parameters())
    assert all(p.requires_grad for p in backbone.net.layer2.parameters())


def test_weights_of_torchvision_by_position_and_of_timm_by_name(tmp_path) -> None:
    source = torchvision.models.mobilenet_v2()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}},
        tmp_path / "w.pth",
    )
    net = create_timm_net("mobilenetv2_100", 3, pretrained=False)
    report = load_timm_weights(net, str(tmp_path / "w.pth"))
    assert "255 weights matched by position" in report
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        mine = net.eval()(x)[-1]
        wanted = source.eval().features[:-1](x)
    torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
    torch.save(net.state_dict(), tmp_path / "timm.pth")
    other = create_timm_net("mobilenetv2_100", 3, pretrained=False)
    assert "matched by name, 0 of" in load_timm_weights(other, str(tmp_path / "timm.pth"))


def test_weights_are_read_where_no_checkpoint_follows(tmp_path) -> None:
    net = create_timm_net("resnet18", 3, pretrained=False)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    cfg = timm_cfg("resnet18", WEIGHTS=str(tmp_path / "w.pth"))
    assert torch.equal(build_backbone(cfg).bottom_up.net.conv1.weight, net.conv1.weight)
    cfg.MODEL.WEIGHTS = "checkpoint.pth"
    assert not torch.equal(build_backbone(cfg).bottom_up.net.conv1.weight, net.conv1.weight)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("convnext_huge9", {}, "'convnext_huge9' is unknown to timm. Similar:"),
        ("vit_tiny_patch16_224", {}, "strides .* that double"),
        ("resnet18", {"NORM": "sync"}, "MODEL.TIMM.NORM is 'sync'; choose from train, frozen"),
        ("resnet18", {"FROZEN_STAGES": 9}, "FROZEN_STAGES is 9; the model has 5 features"),
        ("resnet18", {"WEIGHTS": "none.pth"}, "MODEL.TIMM.WEIGHTS 'none.pth' does not exist"),
    ],
)
def test_bad_settings(name, changes, message) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_backbone(timm_cfg(name, **changes))


def test_features_that_the_model_lacks() -> None:
    with pytest.raises(ValueError, match=r"names \['res1'\], but MODEL.TIMM.NAME provides"):
        TimmBackbone(create_timm_net("convnext_atto", 3, False), ["res1"], 0, False)


def test_weights_of_another_model(tmp_path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    net = create_timm_net("convnext_atto", 3, pretrained=False)
    with pytest.raises(ValueError, match="0 of .* weights match by name.* first mismatch: stem_0"):
        load_timm_weights(net, str(tmp_path / "w.pth"))
