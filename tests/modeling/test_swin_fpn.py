# SPDX-License-Identifier: Apache-2.0
"""Swin + FPN: shapes, refused settings, and pre-trained weights in the namings of four sources.

The networks that the weights come from are torchvision's and timm's own, at tiny size.
"""

import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

import person_search.modeling  # noqa: F401  registers the backbones
from person_search.config import add_person_search_config
from person_search.engine.checkpoint import AtomicCheckpointer, IncompatibleCheckpointError
from person_search.interface import AdaptsWeights, named_hooks

DEPTHS, HEADS, WIDTH, WINDOW = [1, 2, 2, 1], [1, 2, 2, 4], 8, 3


def swin_cfg(**overrides):
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_swin_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 10
    tiny = {"EMBED_DIM": WIDTH, "DEPTHS": DEPTHS, "HEADS": HEADS, "WINDOW_SIZE": WINDOW}
    for key, value in (tiny | overrides).items():
        assert key in cfg.MODEL.SWIN, key
        cfg.MODEL.SWIN[key] = value
    return cfg


class Model(nn.Module):
    """Holds the backbone where every model of this project has it."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)


def adapt(model, weights):
    """Renames weights as the checkpointer does."""
    return model.backbone.bottom_up.adapt_weights(weights, "backbone.bottom_up.")


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    net = TorchvisionSwin([4, 4], WIDTH, DEPTHS, HEADS, [WINDOW, WINDOW], num_classes=5)
    for parameter in net.parameters():  # also the norms and biases, which start at 1 and 0
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return net.eval()


def official_weights(source):
    """The same weights as the Swin authors name them."""
    cfg_model = Model(swin_cfg())
    adapted = adapt(cfg_model, source.state_dict())
    names = {k.removeprefix("backbone.bottom_up."): v for k, v in adapted.items()}
    names = {re.sub(r"^norm3\.", "norm.", k): v for k, v in names.items()}
    names["layers.0.blocks.0.attn_mask"] = torch.zeros(2, 9, 9)
    return names | {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}


def timm_weights(source):
    """As timm names them: the downsampling begins the stage that it leads to."""
    return {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", k)
        .replace("head.", "head.fc."): v
        for k, v in official_weights(source).items()
        if "attn_mask" not in k
    }  # fmt: skip


def solider_weights(source, prefix=""):
    """As SOLIDER names them, with random patch merging (in its order of inputs) and control."""
    generator = torch.Generator().manual_seed(3)
    renamed = {}
    for key, value in official_weights(source).items():
        if key.startswith("head") or key.endswith("attn_mask"):
            continue
        key = re.sub(r"^layers\.", "stages.", key).replace(
            "patch_embed.proj", "patch_embed.projection"
        )
        key = re.sub(r"\.attn\.", ".attn.w_msa.", key).replace("mlp.fc1", "ffn.layers.0.0")
        key = re.sub(r"^norm\.", "norm3.", key.replace("mlp.fc2", "ffn.layers.1"))
        if ".downsample." in key:
            value = torch.randn(value.shape, generator=generator)
        renamed[prefix + key] = value
    for stage in range(4):
        width = WIDTH * 2 ** min(stage + 1, 3)
        for kind in "wb":
            key = f"{prefix}semantic_embed_{kind}.{stage}"
            renamed[f"{key}.weight"] = torch.randn(width, 2, generator=generator)
            renamed[f"{key}.bias"] = torch.randn(width, generator=generator)
    for stage in range(3):  # not trained there
        for name, value in (("weight", torch.ones), ("bias", torch.zeros)):
            renamed[f"{prefix}norm{stage}.{name}"] = value(WIDTH * 2**stage)
    return renamed | {"head.mlp.0.weight": torch.zeros(3, 3)}


# ---- the network -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (97, 133)])
def test_declared_shapes_are_the_real_ones(size):
    """Strides 4 to 32 from the FPN, also for images that the model has to pad first."""
    backbone = build_backbone(swin_cfg()).eval()
    divisor = backbone.size_divisibility
    assert divisor == 32
    height, width = ((side + divisor - 1) // divisor * divisor for side in size)
    image = nn.functional.pad(torch.randn(2, 3, *size), (0, width - size[1], 0, height - size[0]))
    features = backbone(image)
    declared = backbone.output_shape()
    assert list(features) == list(declared) == ["p2", "p3", "p4", "p5"]
    for name, feature in features.items():
        stride = declared[name].stride
        assert stride == 2 ** int(name[1])
        assert feature.shape == (2, 10, height // stride, width // stride)


def test_bottom_up_takes_any_size():
    features = build_backbone(swin_cfg()).eval().bottom_up(torch.randn(1, 3, 61, 75))
    assert [tuple(f.shape[1:]) for f in features.values()] == [
        (8, 16, 19), (16, 8, 10), (32, 4, 5), (64, 2, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("checkpoint", [False, True])
def test_every_weight_learns(checkpoint):
    backbone = build_backbone(swin_cfg(DROP_PATH=0.0, ACTIVATION_CHECKPOINT=checkpoint)).train()
    sum(x.square().mean() for x in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_fpn_over_some_stages_leaves_no_norm_unused():
    cfg = swin_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["p1", "p2", "p3"]
    backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["p3", "p4", "p5"]
    assert not hasattr(backbone.bottom_up, "norm0")


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"HEADS": [1, 2]}, "one entry per stage"),
        ({"HEADS": [3, 2, 2, 4]}, "must divide the channels"),
        ({"DROP_PATH": 1.5}, r"must be in \[0, 1\)"),
        ({"SEMANTIC_WEIGHT": 1.5}, r"SEMANTIC_WEIGHT is 1.5; it must be in \[0, 1\]"),
    ],
)
def test_wrong_settings_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(swin_cfg(**overrides))


def test_unknown_stage_is_refused():
    cfg = swin_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["res2"]
    with pytest.raises(ValueError, match=r"MODEL.FPN.IN_FEATURES names \['res2'\]"):
        build_backbone(cfg)


@pytest.mark.slow
def test_size_of_swin_base():
    """89.6 M parameters with the FPN."""
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_swin_fpn_backbone"
    count = sum(p.numel() for p in build_backbone(cfg).parameters())
    assert 89.55e6 < count < 89.65e6, count


# ---- pre-trained weights -----------------------------------------------------------------------


@pytest.mark.parametrize("naming", ["torchvision", "official", "timm"])
def test_features_are_those_of_the_source(naming, source, tmp_path):
    weights = {
        "torchvision": source.state_dict,
        "official": lambda: {"model": official_weights(source)},
        "timm": lambda: timm_weights(source),
    }[naming]()
    torch.save(weights, tmp_path / "weights.pth")
    model = Model(swin_cfg()).eval()
    AtomicCheckpointer(model).load(str(tmp_path / "weights.pth"), checkpointables=[])

    image = torch.randn(1, 3, 160, 192)
    expected, x = [], image
    for index, part in enumerate(source.features):
        x = part(x)
        if index % 2:
            expected.append(x)
    features = model.backbone.bottom_up(image)
    # Stages 0 to 2 end in a norm that the source does not have; it starts as a plain one.
    for index, feature in enumerate(expected[:-1]):
        expected[index] = nn.functional.layer_norm(feature, feature.shape[-1:])
    expected[-1] = source.norm(expected[-1])
    for feature, reference in zip(features.values(), expected, strict=True):
        torch.testing.assert_close(feature, reference.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_timm_itself():
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    net = timm.models.swin_transformer.SwinTransformer(
        img_size=192, embed_dim=WIDTH, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW,
        num_classes=3,
    ).eval()  # fmt: skip
    model = Model(swin_cfg()).eval()
    model.load_state_dict(adapt(model, net.state_dict()), strict=False)
    image = torch.randn(1, 3, 192, 192)
    torch.testing.assert_close(
        model.backbone.bottom_up(image)["p3"],
        net.forward_features(image).permute(0, 3, 1, 2),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("degree, prefix", [(0.25, ""), (-1.0, "backbone."), (1.0, "backbone.")])
def test_features_of_solider(degree, prefix, source, tmp_path):
    """Its patch merging gathers by ``unfold``; its control scales and shifts what follows."""
    weights = solider_weights(source, prefix)
    names = {f"module.{k}": v for k, v in weights.items()}
    torch.save({"teacher": names, "student": {}, "epoch": 3}, tmp_path / "swin.pth")
    model = Model(swin_cfg(SEMANTIC_WEIGHT=degree)).eval()
    AtomicCheckpointer(model).load(str(tmp_path / "swin.pth"), checkpointables=[])

    image = torch.randn(1, 3, 96, 96)
    x, expected = source.features[0](image), []
    for stage in range(4):
        x = source.features[2 * stage + 1](x)
        expected.append(nn.functional.layer_norm(x, x.shape[-1:]))
        if stage == 3:
            expected[-1] = source.norm(x)
            break
        w = {k: weights[f"{prefix}stages.{stage}.downsample.{k}"] for k in (
            "norm.weight", "norm.bias", "reduction.weight")}  # fmt: skip
        cells = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        cells = nn.functional.layer_norm(
            cells, cells.shape[-1:], w["norm.weight"], w["norm.bias"], 1e-5
        )
        cells = cells @ w["reduction.weight"].T
        if degree >= 0:
            scale, shift = (
                weights[f"{prefix}semantic_embed_{kind}.{stage}.weight"]
                @ torch.tensor([degree, 1 - degree])
                + weights[f"{prefix}semantic_embed_{kind}.{stage}.bias"]
                for kind in "wb"
            )
            cells = cells * nn.functional.softplus(scale) + shift
        x = cells.unflatten(1, (x.shape[1] // 2, x.shape[2] // 2))
    features = model.backbone.bottom_up(image)
    for feature, reference in zip(features.values(), expected, strict=True):
        torch.testing.assert_close(feature, reference.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # a checkpoint of the model itself gives the same again
        torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
        again = Model(swin_cfg(SEMANTIC_WEIGHT=degree)).eval()
        AtomicCheckpointer(again).load(str(tmp_path / "own.pth"))
        assert torch.equal(again.backbone.bottom_up(image)["p3"], features["p3"])


def test_semantic_weight_needs_the_weights_of_solider(source):
    model = Model(swin_cfg(SEMANTIC_WEIGHT=0.5))
    with pytest.raises(ValueError, match=r"no semantic control, but .*SEMANTIC_WEIGHT is 0.5"):
        adapt(model, source.state_dict())


def test_all_weights_but_the_new_norms_are_filled(source):
    model = Model(swin_cfg())
    result = model.load_state_dict(adapt(model, source.state_dict()), strict=False)
    assert not result.unexpected_keys
    bottom_up = [k for k in result.missing_keys if k.startswith("backbone.bottom_up.")]
    assert {k.split(".")[2] for k in bottom_up} == {"norm0", "norm1", "norm2"}


def test_own_checkpoints_and_other_networks_are_unchanged():
    model = Model(swin_cfg())
    for weights in (model.state_dict(), {"conv1.weight": torch.zeros(1)}):
        assert adapt(model, weights) is weights
    assert named_hooks(nn.Linear(2, 2), AdaptsWeights) == []


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"WINDOW_SIZE": 5}, "Its windows have 3 tokens a side"),
        ({"EMBED_DIM": 16}, r"\(8, 3, 4, 4\) in the file, \(16, 3, 4, 4\) in the model"),
        ({"DEPTHS": [1, 2, 3, 1]}, r"missing from the file: layers.2.blocks.2"),
        ({"DEPTHS": [1, 2, 1, 1]}, r"only in the file: layers.2.blocks.1"),
    ],
)
def test_other_sizes_are_refused(overrides, message, source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    checkpointer = AtomicCheckpointer(Model(swin_cfg(**overrides)))
    with pytest.raises(IncompatibleCheckpointError, match=message) as error:
        checkpointer.load(str(tmp_path / "weights.pth"), checkpointables=[])
    assert "weights.pth" in str(error.value) and "MODEL.SWIN" in str(error.value)


def test_swin_v2_is_refused():
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    net = TorchvisionSwin(
        [4, 4], WIDTH, DEPTHS, HEADS, [WINDOW, WINDOW],
        block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="is for Swin V2"):
        adapt(Model(swin_cfg()), net.state_dict())
