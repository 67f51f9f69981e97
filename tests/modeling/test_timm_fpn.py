# SPDX-License-Identifier: Apache-2.0
"""Models of timm as FPN backbones: shapes, frozen parts, weights of other layouts."""

import re

import pytest
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from person_search.config import add_person_search_config
from person_search.modeling.optimize import fold_batch_norms
from person_search.modeling.timm_fpn import TimmBackbone, create_timm_net, load_timm_weights

timm = pytest.importorskip("timm")


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


def with_random_norms(name: str) -> TimmBackbone:
    """A backbone in eval mode whose batch norms have statistics."""
    net = timm.create_model(name, features_only=True)
    torch.manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.uniform_(-0.2, 0.2)
    return TimmBackbone(net, ["res4"]).eval()


# all norms; those of the first layer in each block read no convolution; without batch norms
@pytest.mark.parametrize(
    ("name", "folded"), [("mobilenetv2_035", 51), ("resnet18", 20), ("resnetv2_50", 32),
                         ("convnext_atto", 0)],
)  # fmt: skip
@torch.no_grad()
def test_folded_norms_keep_the_features(name, folded) -> None:
    backbone, x = with_random_norms(name), torch.rand(1, 3, 64, 96)
    wanted = backbone(x)["res4"]
    assert fold_batch_norms(backbone) == folded
    torch.testing.assert_close(backbone(x)["res4"], wanted, rtol=1e-3, atol=1e-4)


class NormFirst(nn.Module):
    """Registers a norm behind the convolution, but runs it before."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(64, 64, 3, padding=1), norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


@torch.no_grad()
def test_norms_in_another_order_stay() -> None:
    backbone, x = with_random_norms("resnet18"), torch.rand(1, 3, 64, 96)
    backbone.net.layer1[0] = NormFirst(backbone.net.layer1[0].bn1)
    wanted = backbone(x)["res4"]
    assert fold_batch_norms(backbone) == 0
    assert torch.equal(backbone(x)["res4"], wanted)


def test_frozen_stages_and_norms() -> None:
    backbone = build_backbone(timm_cfg("resnet18", FROZEN_STAGES=2, NORM="frozen")).bottom_up
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert all(n.startswith(("net.layer2.", "net.layer3.", "net.layer4.")) for n in trained)
    assert not [n for n in trained if ".bn" in n] and "net.layer2.0.conv1.weight" in trained
    norms = [m for m in backbone.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "mobilenetv2_035"]
)
def test_frozen_stages_of_all_families(name) -> None:
    """Everything up to the frozen stage, nothing behind it."""
    net = build_backbone(timm_cfg(name, FROZEN_STAGES=2)).bottom_up.net
    modules = [module.replace(".", "_") for module in net.feature_info.module_name()]
    parameters = [(key.replace(".", "_"), p.requires_grad) for key, p in net.named_parameters()]
    for module, trained in zip(modules[:4], (False, False, True, True), strict=True):
        of_stage = {grad for key, grad in parameters if key.startswith(f"{module}_")}
        assert of_stage == {trained}, module
    assert not parameters[0][1], "the stem"


def test_synchronized_norms_output_norms_and_checkpointing() -> None:
    cfg = timm_cfg("resnet18", NORM="sync", OUT_NORM="LN", ACTIVATION_CHECKPOINT=True)
    backbone = build_backbone(cfg).train().bottom_up
    kinds = {
        type(m) for m in backbone.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    assert kinds == {nn.SyncBatchNorm} and list(backbone.out_norms) == ["res3", "res4", "res5"]
    features = backbone(torch.randn(2, 3, 64, 64))
    for feature in features.values():  # a new LayerNorm over channels
        torch.testing.assert_close(
            feature.mean(1), torch.zeros_like(feature.mean(1)), atol=1e-4, rtol=0
        )
    sum(f.square().sum() for f in features.values()).backward()
    assert backbone.net.conv1.weight.grad.any(), "recomputed in the backward pass"


def test_drop_path_reaches_the_model() -> None:
    net = create_timm_net("convnext_atto", drop_path_rate=0.4)
    rates = [m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.4) and rates == sorted(rates)


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
        (
            "convnext_huge9",
            {},
            r"'convnext_huge9' is unknown to timm. Similar: \['convnextv2_huge'",
        ),
        ("??", {}, "is unknown to timm. Similar: none"),
        ("vit_tiny_patch16_224", {}, "cannot be used as a backbone: .*strides .* that double"),
        ("hiera_tiny_224", {}, "cannot be used as a backbone: "),  # images of one size only
        ("test_vit", {}, "cannot be used as a backbone: "),
        ("vgg11", {"DROP_PATH": 0.1}, "cannot be used .* 'drop_path_rate'"),
        ("resnet18", {"NORM": "BN"}, "MODEL.TIMM.NORM is 'BN'; choose from train, frozen, sync"),
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
    net = create_timm_net("convnext_atto")
    with pytest.raises(ValueError, match="0 of .* weights match by name.* first mismatch: stem_0"):
        load_timm_weights(net, str(tmp_path / "w.pth"), "convnext_atto")


def test_weights_of_equal_shapes_in_another_order_are_refused(tmp_path) -> None:
    """Weight and bias of a norm have one shape: position alone must not exchange them."""
    net, other = nn.Sequential(nn.BatchNorm1d(4)), {}
    for key, value in reversed(net.state_dict().items()):
        other[f"norm.{key}"] = value
    torch.save(other, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="0 of 4 weights match by name"):
        load_timm_weights(net, str(tmp_path / "w.pth"))


def original_pvt(weights: dict) -> dict:
    """Names of the PVT authors."""
    renamed = {}
    for key, value in weights.items():
        key = key.replace("patch_embed.", "patch_embed1.").replace("dwconv", "dwconv.dwconv")
        key = re.sub(r"stages\.(\d)\.downsample", lambda m: f"patch_embed{int(m[1]) + 1}", key)
        key = re.sub(r"stages\.(\d)\.blocks", lambda m: f"block{int(m[1]) + 1}", key)
        key = re.sub(r"stages\.(\d)\.norm", lambda m: f"norm{int(m[1]) + 1}", key)
        renamed[key] = value
    return renamed


def original_convnext(weights: dict) -> dict:
    """Names of the ConvNeXt authors; their 1 x 1 convolutions are linear layers."""
    renamed = {}
    for key, value in weights.items():
        key = key.replace("stem.", "downsample_layers.0.").replace("head.norm", "norm")
        key = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", key)
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        renamed[key] = value.flatten(1) if "pwconv" in key and value.dim() == 4 else value
    return {"model": renamed}


@pytest.mark.parametrize(
    "name, rename, how",
    [
        ("pvt_v2_b0", original_pvt, r"name \(converted by timm\)"),
        ("convnext_atto", original_convnext, r"name \(converted by timm\)"),
        ("convnext_atto", dict, "name"),
    ],
)
def test_weights_of_the_original_authors(name, rename, how, tmp_path) -> None:
    source = create_timm_net(name, features_only=False)
    for parameter in source.parameters():  # also the norms, which start at 1 and 0
        nn.init.normal_(parameter, std=0.02)
    torch.save(rename(source.state_dict()), tmp_path / "w.pth")
    net = create_timm_net(name)
    assert re.search(
        rf"weights matched by {how}, \d", load_timm_weights(net, str(tmp_path / "w.pth"), name)
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = source.eval().forward_intermediates(x, intermediates_only=True)[-1]
        torch.testing.assert_close(net.eval()(x)[-1], wanted, rtol=1e-4, atol=1e-4)


def test_swin_of_torchvision(tmp_path) -> None:
    """Its patch merging follows the stage; in timm it precedes the next one."""
    sizes = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    source = torchvision.models.swin_transformer.SwinTransformer(
        [4, 4], 24, [1, 1, 1, 1], [1, 2, 3, 4], [7, 7], num_classes=5
    ).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = timm.models.swin_transformer.SwinTransformer(
        img_size=224, num_classes=0, strict_img_size=False, **sizes
    ).eval()
    report = load_timm_weights(net, str(tmp_path / "w.pth"))
    assert "matched by name (Swin layout converted), 2 of the file" in report
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features = source.norm(source.features(x))
        torch.testing.assert_close(net.forward_features(x), features, rtol=1e-4, atol=1e-4)


@pytest.fixture
def no_network(monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_download_without_a_network(no_network) -> None:
    message = "'resnet18': the weights 'imagenet' could not be downloaded: .* give the path of"
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(timm_cfg("resnet18", WEIGHTS="imagenet"))
    assert "\n" not in str(error.value)
