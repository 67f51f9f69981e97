# SPDX-License-Identifier: Apache-2.0
"""The frozen backbone as a whole, on tiny models of three families."""

import copy
import math

import pytest
import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from diffps_plain import SD21_LAYERS, plain_features
from diffps_tiny import tiny_backbone, tiny_backbone_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffps.backbone import DiffusionBackbone
from diffps.loading import DiffusionFolder
from diffps.text import encode_text
from diffps.unet_forward import compile_untapped_blocks
from person_search.engine import build_optimizer
from person_search.engine.ema import AveragedWeights
from person_search.modeling.winograd import WinogradConv2d

ATTN2 = "up_blocks.3.attentions.0.transformer_blocks.0.attn2"


def random_images(count=2, size=(128, 64), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=g) * 2 - 1


@pytest.fixture(scope="module")
def backbone(tiny_sd) -> DiffusionBackbone:
    return tiny_backbone(tiny_sd)


# ---- what comes out -----------------------------------------------------------------------------
def test_equals_the_plain_forward(tiny_sd, backbone):
    """Whole UNet, explicit attention and all maps, with as little of our code as possible."""
    images, folder = random_images(), DiffusionFolder(tiny_sd)
    unet, vae = folder.load_unet(torch.float32, "any"), folder.load_vae(torch.float32)
    context = encode_text(folder, "person").context
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode() * 0.18215 / math.sqrt(1 + 0.0291675**2)
        paths = [path for path, _, _ in SD21_LAYERS.values()]
        expected, maps = plain_features(unet, latents, 0.0, context, paths, ATTN2)
    got = backbone(images)
    assert list(got) == [*SD21_LAYERS, "attn"]
    for name, (path, _, stride) in SD21_LAYERS.items():
        tokens = got[name].flatten(2).transpose(1, 2)
        assert got[name].shape[2:] == (128 // stride, 64 // stride)
        torch.testing.assert_close(tokens, expected[path], atol=1e-4, rtol=1e-4)
    column = maps[:, 1, :, 1].view(2, 16, 8)  # second head, first word
    for i in range(2):
        low, high = column[i].min(), column[i].max()
        expected_map = (column[i] - low) / (high - low)
        torch.testing.assert_close(got["attn"][i, 0], expected_map, atol=1e-4, rtol=1e-4)


def test_truncated_forward_gives_the_same_bits(tiny_sd, backbone):
    whole = tiny_backbone(tiny_sd, TRUNCATE=False)(random_images())
    cut = backbone(random_images())
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_output_shape_says_what_comes_out(tiny_sd, tiny_sd15, tiny_sdxl):
    xl = {"OUT_FEATURES": ["u0r1b1_q", "m0r0_vit", "d1r0_xq", "u2r0_res"], "ATTN__LAYERS": ["u1r0"]}
    for folder, overrides in ((tiny_sd, {}), (tiny_sd15, {}), (tiny_sdxl, xl)):
        backbone = tiny_backbone(folder, **overrides)
        assert isinstance(backbone, Backbone)
        features, shapes = backbone(random_images(1)), backbone.output_shape()
        assert list(features) == list(shapes)
        for name, x in features.items():
            spec = shapes[name]
            assert x.shape == (1, spec.channels, 128 // spec.stride, 64 // spec.stride)
            assert x.dtype == torch.float32 and x.isfinite().all() and x.is_contiguous()


def test_size_divisibility_of_the_families(backbone, tiny_sdxl):
    assert backbone.size_divisibility == 64
    overrides = {"OUT_FEATURES": ["u1r0_k"], "ATTN__LAYERS": []}
    assert tiny_backbone(tiny_sdxl, **overrides).size_divisibility == 32


@pytest.mark.parametrize("heads", [[0], []])
@pytest.mark.parametrize("layers", [["u1r1"], ["u3r0", "up-level1-repeat0-vit-block0-cross-map"]])
def test_maps_of_other_layers_are_resized_to_the_stride(tiny_sd, layers, heads):
    backbone = tiny_backbone(tiny_sd, ATTN__LAYERS=layers, ATTN__HEADS=heads, ATTN__STRIDE=16)
    attn = backbone(random_images())["attn"]
    assert attn.shape == (2, 1, 8, 4)
    assert attn.amin((1, 2, 3)).tolist() == [0, 0] and attn.amax((1, 2, 3)).tolist() == [1, 1]


def test_without_map_layers_there_is_no_map(tiny_sd):
    backbone = tiny_backbone(tiny_sd, ATTN__LAYERS=[], PROMPT="a photo of two people")
    assert "attn" not in backbone(random_images(1)) and "attn" not in backbone.output_shape()


def test_the_word_of_a_longer_prompt_gives_another_map(tiny_sd):
    maps = [
        tiny_backbone(tiny_sd, PROMPT="a person", ATTN__WORD=word)(random_images(1))["attn"]
        for word in ("a", "person")
    ]
    assert not torch.allclose(*maps, atol=1e-2)


# ---- sizes and batches --------------------------------------------------------------------------
@settings(max_examples=12)
@given(sizes=st.lists(st.tuples(*[st.integers(1, 140)] * 2), min_size=1, max_size=3))
def test_an_image_does_not_depend_on_the_rest_of_the_batch(backbone, sizes):
    images = [random_images(1, size, seed)[0] for seed, size in enumerate(sizes)]
    batch = ImageList.from_tensors(images, backbone.size_divisibility)
    together = backbone(batch.tensor, batch.image_sizes)
    for index, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        one = ImageList.from_tensors([image], backbone.size_divisibility)
        alone = backbone(one.tensor, one.image_sizes)
        for name, x in alone.items():
            inside = together[name][index, :, : x.shape[2], : x.shape[3]]
            torch.testing.assert_close(inside, x[0], atol=2e-4, rtol=2e-4)
            assert together[name][index].abs().sum() == pytest.approx(float(inside.abs().sum()))
        cells = math.ceil(h / 8), math.ceil(w / 8)
        assert alone["attn"][0, 0, cells[0] :].abs().sum() == 0
        assert alone["attn"][0, 0, :, cells[1] :].abs().sum() == 0


@pytest.mark.parametrize("size", [(1, 1), (40, 63), (64, 64)])
def test_images_smaller_than_64_pixels_are_padded(backbone, size):
    features = backbone(random_images(1, size))
    for name, spec in backbone.output_shape().items():
        assert features[name].shape[2:] == (64 // spec.stride, 64 // spec.stride)
        assert features[name].isfinite().all()


def test_other_sizes_are_rounded_up(backbone):
    features = backbone(random_images(1, (65, 130)))
    assert features["u3r0_k"].shape[2:] == (16, 24)


def test_wrong_input_is_refused(backbone):
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\), got \(1, 1, 64, 64\)"):
        backbone(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"got \(1, 3, 0, 64\)"):
        backbone(torch.zeros(1, 3, 0, 64))
    with pytest.raises(ValueError, match=r"image_sizes \[\(65, 64\)\] do not fit"):
        backbone(torch.zeros(1, 3, 64, 64), [(65, 64)])
    with pytest.raises(FloatingPointError, match="images given to the backbone hold"):
        backbone(torch.full((1, 3, 64, 64), float("nan")))


# ---- frozen -------------------------------------------------------------------------------------
def test_frozen_in_fact(tiny_sd):
    backbone = tiny_backbone(tiny_sd)
    model = nn.Sequential(backbone, nn.Conv2d(16, 2, 1))
    vae, unet = backbone._frozen
    model.train()
    assert not any(m.training for part in (vae, unet) for m in part.modules())
    assert not any(name.startswith("0.") for name in model.state_dict())
    assert [name for name, _ in model.named_parameters()] == ["1.weight", "1.bias"]
    cfg = tiny_backbone_cfg(tiny_sd)
    optimizer = build_optimizer(cfg, model)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 16 * 2 + 2
    before = {name: w.clone() for name, w in unet.state_dict().items()}
    images = random_images(1).requires_grad_()
    features = backbone(images)
    assert not any(x.requires_grad for x in features.values())
    model[1](features["u3r0_k"]).sum().backward()
    optimizer.step()
    assert images.grad is None and model[1].weight.grad is not None
    assert all(p.grad is None for part in (vae, unet) for p in part.parameters())
    assert all(torch.equal(before[name], w) for name, w in unet.state_dict().items())


def test_follows_to_and_copies(tiny_sd):
    backbone = tiny_backbone(tiny_sd)
    expected = backbone(random_images(1))
    again = copy.deepcopy(backbone)
    assert again._frozen[1] is not backbone._frozen[1]
    assert all(torch.equal(expected[k], x) for k, x in again(random_images(1)).items())
    double = nn.Sequential(again).to(torch.float64)
    assert {p.dtype for part in again._frozen for p in part.parameters()} == {torch.float64}
    assert double[0].word_vectors(["head"]).dtype == torch.float64


def test_averaged_weights_share_the_unet(tiny_sd):
    """SOLVER.EMA copies the model, except its frozen part."""
    model = nn.Sequential(tiny_backbone(tiny_sd), nn.Conv2d(16, 2, 1))
    copied = AveragedWeights(model, 0.9).module[0]
    assert copied is not model[0] and copied._frozen is model[0]._frozen
    expected, got = model[0](random_images(1)), copied(random_images(1))
    assert all(torch.equal(expected[name], x) for name, x in got.items())


def test_is_repeatable_by_default_and_random_if_configured(tiny_sd, backbone):
    images = random_images(1)
    assert torch.equal(backbone(images)["u3r0_k"], backbone(images)["u3r0_k"])
    release = tiny_backbone(tiny_sd, NOISE="random", VAE_SAMPLE=True)
    assert not torch.equal(release(images)["u3r0_k"], release(images)["u3r0_k"])
    seeded = tiny_backbone(tiny_sd, NOISE="seeded", VAE_SAMPLE=True, TIMESTEP=300)
    first = seeded(images)["u3r0_k"]
    assert torch.equal(first, seeded(images)["u3r0_k"])
    assert torch.equal(first, seeded(images, keys=[None])["u3r0_k"])
    assert not torch.equal(first, seeded(images, keys=["ab"])["u3r0_k"])


def test_timestep_changes_the_features(tiny_sd, backbone):
    later = tiny_backbone(tiny_sd, TIMESTEP=800)(random_images(1))["u3r0_k"]
    assert not torch.allclose(later, backbone(random_images(1))["u3r0_k"], atol=1e-2)


# ---- precision ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name, limit", [("float16", 2e-2), ("bfloat16", 0.15)])
def test_half_precision_is_close(tiny_sd, backbone, name, limit):
    expected, got = backbone(random_images()), tiny_backbone(tiny_sd, DTYPE=name)(random_images())
    for key, x in got.items():
        assert x.dtype == torch.float32
        assert (x - expected[key]).norm() / expected[key].norm() < limit, key


def test_convolutions_of_bfloat16_are_channels_last_on_a_cpu(tiny_sd):
    for name, wanted in (("bfloat16", True), ("float32", False)):
        frozen = tiny_backbone(tiny_sd, DTYPE=name, WINOGRAD=False)._frozen
        weight = frozen[1].conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == wanted


def test_autocast_around_it_changes_only_the_dtype_given(tiny_sd):
    backbone = tiny_backbone(tiny_sd, DTYPE="bfloat16")
    expected = backbone(random_images(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = backbone(random_images(1))
    assert got["attn"].dtype == torch.float32 and got["u3r0_k"].dtype == torch.bfloat16
    assert all(torch.equal(got[k].float(), expected[k]) for k in got)


def overflow_values(backbone):
    """Lets the values of one attention layer exceed float16 (65504).

    In exact arithmetic nothing changes, since what follows is scaled down as much.
    """
    unet = backbone._frozen[1]
    attn = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1")
    with torch.no_grad():
        attn.to_v.weight *= 2**17
        attn.to_out[0].weight /= 2**17


def test_overflow_of_float16_attention_is_repaired(tiny_sd, caplog):
    backbone = tiny_backbone(tiny_sd, DTYPE="float16")
    expected = backbone(random_images())
    overflow_values(backbone)
    got = backbone(random_images())
    assert sum("float16 overflowed" in r.message for r in caplog.records) == 1
    for name, x in got.items():
        assert x.isfinite().all()
        assert (x - expected[name]).norm() / expected[name].norm() < 5e-2, name
    backbone(random_images())
    assert sum("float16 overflowed" in r.message for r in caplog.records) == 1  # stays repaired


def test_overflow_ends_the_run_if_configured(tiny_sd):
    backbone = tiny_backbone(tiny_sd, DTYPE="float16", NONFINITE="raise")
    overflow_values(backbone)
    with pytest.raises(FloatingPointError, match="DTYPE float16. Set DTYPE to 'bfloat16'"):
        backbone(random_images())


def test_upcast_from_the_start(tiny_sd, caplog):
    backbone = tiny_backbone(tiny_sd, DTYPE="float16", UPCAST_ATTENTION=True)
    overflow_values(backbone)
    assert all(x.isfinite().all() for x in backbone(random_images()).values())
    assert not caplog.records


def test_damaged_weights_are_not_repaired(tiny_sd):
    backbone = tiny_backbone(tiny_sd)
    with torch.no_grad():
        backbone._frozen[1].conv_in.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="activations u1r2_q.*weights are damaged"):
        backbone(random_images())


def test_overflow_of_the_float16_vae(tiny_sd, caplog):
    backbone = tiny_backbone(tiny_sd, DTYPE="float16")
    with torch.no_grad():
        backbone._frozen[0].encoder.conv_in.weight *= 2e5
    assert all(x.isfinite().all() for x in backbone(random_images(1)).values())
    assert "float16 overflowed in the VAE" in caplog.text


# ---- configuration ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"OUT_FEATURES": ["u3r0_k", "u9r0_k"]}, "OUT_FEATURES names 'u9r0_k'"),
        ({"OUT_FEATURES": ["u3r0_map"]}, "OUT_FEATURES names 'u3r0_map'"),
        ({"ATTN__LAYERS": ["u0r0"]}, "ATTN.LAYERS names 'u0r0_map'"),
        ({"ATTN__HEADS": [2]}, r"ATTN.HEADS is \[2\], but u3r0_map has heads 0 to 1"),
        ({"OUT_FEATURES": [], "ATTN__LAYERS": []}, "are both empty"),
        ({"NONFINITE": "ignore"}, "NONFINITE is 'ignore'"),
        ({"TIMESTEP": 1000}, "TIMESTEP is 1000"),
        ({"CACHE__KIND": "disk"}, "CACHE.KIND is 'disk'"),
        ({"CACHE__KIND": "latent"}, "CACHE.DIR is empty"),
        ({"CACHE__KIND": "feature", "CACHE__DIR": "x", "NOISE": "random"}, "one draw of the noise"),
    ],
)
def test_invalid_settings_are_named(tiny_sd, overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_backbone(tiny_sd, **overrides)


def test_only_rgb_in_the_range_of_the_model(tiny_sd):
    cfg = tiny_backbone_cfg(tiny_sd)
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"RGB in \[-1, 1\].*'BGR'"):
        DiffusionBackbone(cfg, None)


def test_text_encoder_is_released(backbone):
    held = {type(m).__name__ for part in backbone._frozen for m in part.modules()}
    assert not any(name.startswith("CLIP") for name in held)
    assert "Decoder" not in held


def test_compiled_blocks_give_the_same_features(tiny_sd):
    # one block lies before this layer; the backend traces, but does not generate code
    backbone = tiny_backbone(tiny_sd, OUT_FEATURES=["d0r1_q"], ATTN__LAYERS=[])
    expected = backbone(random_images(1))["d0r1_q"]
    assert compile_untapped_blocks(backbone._frozen[1], "aot_eager") == 15
    got = backbone(random_images(1))["d0r1_q"]
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


def test_blocks_with_hooks_are_not_compiled(tiny_sd):
    from diffusers.models.attention import BasicTransformerBlock

    backbone = tiny_backbone(tiny_sd, COMPILE=True)
    unet = backbone._frozen[1]
    blocks = {n: m for n, m in unet.named_modules() if isinstance(m, BasicTransformerBlock)}
    plain = [name for name, block in blocks.items() if block._compiled_call_impl is None]
    tapped = [
        "1.attentions.2",
        "2.attentions.1",
        "2.attentions.2",
        "3.attentions.0",
        "3.attentions.1",
    ]
    assert len(blocks) == 6 + 1 + 9
    tapped = [(1, 2), (2, 1), (2, 2), (3, 0), (3, 1)]
    assert plain == [f"up_blocks.{u}.attentions.{r}.transformer_blocks.0" for u, r in tapped]


def test_winograd_convolutions(tiny_sd, monkeypatch):
    """The tiny model is too narrow for it, so the limit is removed."""
    images = torch.rand(2, 3, 64, 128) * 2 - 1
    expected = tiny_backbone(tiny_sd, WINOGRAD=False)(images)
    monkeypatch.setattr("diffps.backbone.MIN_CHANNELS", 8)
    backbone = tiny_backbone(tiny_sd)
    counts = [sum(isinstance(m, WinogradConv2d) for m in part.modules()) for part in
              backbone._frozen]  # fmt: skip
    assert min(counts) > 5
    for name, x in backbone(images).items():
        torch.testing.assert_close(x, expected[name], atol=2e-4, rtol=2e-4)
    half = tiny_backbone(tiny_sd, DTYPE="bfloat16")
    assert not any(isinstance(m, WinogradConv2d) for p in half._frozen for m in p.modules())
