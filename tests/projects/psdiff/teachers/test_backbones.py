# SPDX-License-Identifier: Apache-2.0
"""Backbones of the teachers: where they come from, their stride, their weights."""

import builtins

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from teacher_tiny import teacher_cfg

from psdiff.teachers.backbones import StagedBackbone, WholeBackbone, build_teacher_backbone
from psdiff.teachers.registry import build_teacher

KEY = "MODEL.PSDIFF.TEACHER.BACKBONE"
IMAGE = torch.zeros(1, 3, 64, 32)


def build(folder, backbone, **teacher):
    cfg = teacher_cfg(folder, BACKBONE=backbone, **teacher)
    return build_teacher_backbone(cfg).eval()


def test_torchvision_network_is_the_same_behind_other_names(tmp_path):
    name = "torchvision/resnet18"
    whole = torchvision.models.resnet18(weights=None).eval()
    path = str(tmp_path / "resnet18.pth")
    torch.save({"state_dict": whole.state_dict()}, path)
    ours = build(tmp_path, name, BACKBONE_WEIGHTS=path, LAST_STRIDE=2)
    image = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(whole.fc(ours(image).mean(dim=(2, 3))), whole(image))

    without_classifier = {k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")}
    save_file(without_classifier, tmp_path / "resnet18.safetensors")
    fine = build(tmp_path, name, BACKBONE_WEIGHTS=str(tmp_path / "resnet18.safetensors"))
    assert torch.equal(fine.res5[1].conv1.weight, ours.res5[1].conv1.weight)
    with torch.no_grad():
        assert ours(IMAGE).shape == (1, 512, 2, 1) and fine(IMAGE).shape == (1, 512, 4, 2)
    assert fine.stage_channels == [64, 128, 256, 512]


def test_timm_resnet_has_stages(tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    fine, coarse = (build(tmp_path, "timm/test_resnet", LAST_STRIDE=stride) for stride in (1, 2))
    with torch.no_grad():
        heights = fine(IMAGE).shape[2], coarse(IMAGE).shape[2]
    assert isinstance(fine, StagedBackbone) and heights == (4, 2)
    with pytest.raises(ValueError, match="LAST_STRIDE is 4; allowed: 1, 2"):
        build(tmp_path, "timm/test_resnet", LAST_STRIDE=4)


def test_timm_network_reads_the_layout_of_torchvision(tmp_path, caplog):
    pytest.importorskip("timm", reason="timm is not installed")
    whole = torchvision.models.mobilenet_v2(width_mult=0.35).eval()
    torch.save(whole.features.state_dict(), tmp_path / "mobilenet.pth")
    with caplog.at_level("INFO"):
        backbone = build(
            tmp_path, "timm/mobilenetv2_035", BACKBONE_WEIGHTS=str(tmp_path / "mobilenet.pth")
        )
    assert "260 weights matched by position, 0 of the file" in caplog.text
    image = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image), whole.features(image))
    torch.save({"stem": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="BACKBONE_WEIGHTS .*other.pth' does not fit the model"):
        build(tmp_path, "timm/mobilenetv2_035", BACKBONE_WEIGHTS=str(tmp_path / "other.pth"))


def test_tokens_of_timm_become_a_map(tmp_path, caplog):
    pytest.importorskip("timm", reason="timm is not installed")
    backbone = build(tmp_path, "timm/test_vit", CROP_SIZE=[64, 32])
    assert "timm/test_vit has no stages: it keeps its own last stride" in caplog.text
    with torch.no_grad():
        y = backbone(IMAGE)
        tokens = backbone.net.forward_features(IMAGE)
    assert y.shape == (1, backbone.channels, 4, 2)
    prefix = backbone.net.num_prefix_tokens
    assert torch.equal(y[0, :, 1, 0], tokens[0, prefix + 2])  # second row, two patches in a row


def test_channels_last_become_channels_first():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    swin = timm.models.SwinTransformer(
        img_size=(64, 32), window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1)
    )
    backbone = WholeBackbone(swin.eval(), swin.num_features)
    with torch.no_grad():
        assert torch.equal(backbone(IMAGE), swin.forward_features(IMAGE).permute(0, 3, 1, 2))


def test_slim_backbone_keeps_its_names(tmp_path):
    net = build_teacher(teacher_cfg(tmp_path, LAST_STRIDE=2))
    names = {key.split(".")[1] for key in net.state_dict() if key.startswith("backbone.")}
    assert names == {"stem", "res2", "res3"} and net.backbone.as_detector


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (
            "torchvision/vgg16",
            "only the residual networks of torchvision are supported: .*resnet50",
        ),
        ("hub/resnet50", "must be 'torchvision/<name>', 'timm/<name>' or a name"),
        ("build_nothing", "not in BACKBONE_REGISTRY; available: .*build_slim_resnet_backbone"),
    ],
)
def test_unknown_names_are_refused_with_those_that_exist(backbone, message, tmp_path):
    with pytest.raises(ValueError, match=f"{KEY} is '{backbone}'.*{message}"):
        build(tmp_path, backbone)


def test_unknown_or_missing_timm_is_named(tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ValueError, match="'resnet51_unknown' is unknown to timm. Similar"):
        build(tmp_path, "timm/resnet51_unknown")
    importing = builtins.__import__

    def without_timm(name, *args, **kwargs):
        if name == "timm":
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ValueError, match=r"not installed: pip install 'person-search\[timm\]'"):
        build(tmp_path, "timm/resnet18")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    key = "BACKBONE_WEIGHTS"
    name = "torchvision/resnet18"
    with pytest.raises(FileNotFoundError, match=f"{key} is 'nowhere.pth', which is not a file"):
        build(tmp_path, name, BACKBONE_WEIGHTS="nowhere.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=f"{key}: .* weights are missing, the first is bn1"):
        build(tmp_path, name, BACKBONE_WEIGHTS=str(tmp_path / "part.pth"))
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"{key}: .*broken.pth' does not fit"):
        build(tmp_path, name, BACKBONE_WEIGHTS=str(tmp_path / "broken.pth"))
    with pytest.raises(ValueError, match="'imagenet' is for torchvision and timm"):
        build(tmp_path, "build_slim_resnet_backbone", BACKBONE_WEIGHTS="imagenet")


@pytest.mark.parametrize("method", ["mgn", "agw"])
def test_methods_that_work_inside_need_stages(method, tmp_path):
    cfg = teacher_cfg(tmp_path, method, BACKBONE="build_slim_resnet_fpn_backbone")
    with pytest.raises(
        ValueError, match=f"'{method}' needs a backbone .*accessible stages.*resnet50"
    ):
        build_teacher(cfg)
