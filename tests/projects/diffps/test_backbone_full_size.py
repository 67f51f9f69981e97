# SPDX-License-Identifier: Apache-2.0
"""The real architectures: shapes and cost without weights, one forward with random ones."""

import pytest
import torch
from diffps_plain import SD21_LAYERS, plain_features
from random_diffusion import build_unet, build_vae
from torch.utils.flop_counter import FlopCounterMode

from diffps.attention import use_fused_attention
from diffps.hooks import ActivationTap, find_layers, list_layers
from diffps.loading import FAMILIES, UNetShape
from diffps.text import TextConditioning
from diffps.unet_forward import UNetFeatures


@pytest.mark.parametrize(
    "family, millions", [("sd15", 859.520964), ("sd21", 865.910724), ("sdxl", 2567.463684)]
)
def test_families_have_their_published_size_and_shape(family, millions):
    unet = build_unet(family, "meta")
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=1e-6)
    assert UNetShape.of_config(unet.config) == FAMILIES[family]


def test_layers_of_sd21():
    layers = list_layers(build_unet("sd21", "meta"))
    for name, (path, channels, stride) in SD21_LAYERS.items():
        layer = layers[name]
        assert (layer.module, layer.channels, layer.stride) == (path, channels, stride)
    heads = {layers[name].heads for name in ("u1r2_q", "u2r1_v", "u3r0_map")}
    assert heads == {20, 10, 5}


def test_layers_of_sdxl():
    layers = list_layers(build_unet("sdxl", "meta"))
    assert (layers["u0r2b9_q"].channels, layers["u0r2b9_q"].stride) == (1280, 32)
    assert (layers["u1r0b1_k"].channels, layers["u1r0b1_k"].stride) == (640, 16)
    assert (layers["u2r2_res"].channels, layers["u2r2_res"].stride) == (320, 8)
    assert "u2r0_q" not in layers and "u0r0b10_q" not in layers


@pytest.mark.parametrize(
    "size, whole, cut",
    [((1280, 1280), 9.025, 6.995), ((960, 1664), 8.683, 6.745)],  # 2 x multiply-adds, in 1e12
)
def test_cost_of_the_truncated_forward(size, whole, cut):
    unet = build_unet("sd21", "meta")
    use_fused_attention(unet)
    layers = find_layers(list(SD21_LAYERS), list_layers(unet), "")
    tap = ActivationTap(layers, 8)
    tap.attach(unet)
    latents = torch.empty(1, 4, size[0] // 8, size[1] // 8, device="meta")
    context, time = torch.empty(1, 77, 1024, device="meta"), torch.zeros((), device="meta")
    for truncate, expected in ((False, whole), (True, cut)):
        with FlopCounterMode(display=False) as counter:
            with tap.record(tuple(latents.shape[2:]), truncate) as outputs:
                unet(latents, time, context)
        assert counter.get_total_flops() / 1e12 == pytest.approx(expected, abs=1e-3)
        for layer in layers:
            cells = (size[0] // layer.stride, size[1] // layer.stride)
            assert outputs[layer.name].shape == (1, layer.channels, *cells)


def test_size_and_cost_of_the_vae_encoder():
    vae = build_vae("sd21", "meta")
    parts = (vae.encoder, vae.quant_conv)
    assert sum(p.numel() for part in parts for p in part.parameters()) == 34_163_664
    with FlopCounterMode(display=False) as counter:
        vae.encoder(torch.empty(1, 3, 1280, 1280, device="meta"))
    assert counter.get_total_flops() / 1e12 == pytest.approx(8.107, abs=1e-3)


@pytest.mark.slow
def test_sd21_with_random_weights():
    """3.5 GB of float32 weights, an image of 128 x 64: hooks, shapes, truncation, map."""
    unet = build_unet("sd21")
    latents, context = torch.randn(1, 4, 16, 8), torch.randn(1, 77, 1024)
    paths = [path for path, _, _ in SD21_LAYERS.values()]
    attn2 = "up_blocks.3.attentions.0.transformer_blocks.0.attn2"
    with torch.no_grad():
        expected, maps = plain_features(unet, latents, 0.0, context, paths, attn2)
    layers = find_layers([*SD21_LAYERS, "u3r0_map"], list_layers(unet), "")
    text = TextConditioning(context, None, {}, token=1)
    features = UNetFeatures(unet, layers, text, timestep=0, map_heads=[1])
    cut = features(latents, (128, 64))
    features.truncate = False
    whole = features(latents, (128, 64))
    for layer in layers:
        assert torch.equal(cut[layer.name], whole[layer.name])
        assert cut[layer.name].shape == (1, layer.channels, 128 // layer.stride, 64 // layer.stride)
    for name, (path, _, _) in SD21_LAYERS.items():
        got = cut[name].flatten(2).transpose(1, 2)
        assert (got - expected[path]).norm() / expected[path].norm() < 1e-4
    torch.testing.assert_close(cut["u3r0_map"].flatten(), maps[0, 1, :, 1], atol=1e-6, rtol=1e-4)
