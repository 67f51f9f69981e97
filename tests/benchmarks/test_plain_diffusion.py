# SPDX-License-Identifier: Apache-2.0
"""Models of random weights, and the fast backbone against the plain one."""

import pytest
import torch
from detectron2.modeling import build_backbone
from diffps_plain import SD21_LAYERS, plain_features
from diffps_tiny import tiny_backbone_cfg
from diffusers.models.attention_processor import AttnProcessor
from random_diffusion import UNET_CONFIGS, build_plain_backbone, random_parts, shared_copy


def random_cfg(**overrides):
    cfg = tiny_backbone_cfg("", FAMILY="tiny", **overrides)
    cfg.MODEL.BACKBONE.NAME = "build_random_diffusion_backbone"
    return cfg


def images(count=2):
    return torch.rand(count, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_fast_backbone_equals_the_plain_one():
    cfg = random_cfg()
    fast, plain = build_backbone(cfg)(images()), build_plain_backbone(cfg)(images())
    assert list(fast) == list(plain) == [*SD21_LAYERS, "attn"]
    for name, x in plain.items():
        assert x.dtype == torch.float32 and x.std() > 1e-3
        torch.testing.assert_close(fast[name], x, atol=2e-4, rtol=2e-4)


def test_the_plain_one_equals_the_attention_of_diffusers():
    plain = build_plain_backbone(random_cfg())
    got = plain.run_unet(latents := plain.encode(images()))
    unet = plain._frozen[1]
    unet.set_attn_processor(AttnProcessor())
    attn2 = "up_blocks.3.attentions.0.transformer_blocks.0.attn2"
    paths = [path for path, _, _ in SD21_LAYERS.values()]
    with torch.no_grad():
        expected, maps = plain_features(unet, latents, 0, plain.context, paths, attn2)
    for name, (path, _, _) in SD21_LAYERS.items():
        tokens = got[name].flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokens, expected[path], atol=1e-4, rtol=1e-4)
    column = maps[:, 1, :, 1].view(2, 1, 8, 16)
    low, high = column.amin((2, 3), keepdim=True), column.amax((2, 3), keepdim=True)
    torch.testing.assert_close(got["attn"], (column - low) / (high - low), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype, limit", [("float16", 2e-2), ("bfloat16", 0.15)])
def test_both_agree_in_half_precision(dtype, limit):
    cfg = random_cfg(DTYPE=dtype)
    fast, plain = build_backbone(cfg)(images()), build_plain_backbone(cfg)(images())
    for name, x in plain.items():
        if name != "attn":  # stretching to [0, 1] magnifies the error
            assert (fast[name] - x).norm() / x.norm() < limit, name


def test_copies_share_their_weights():
    parts = random_parts("tiny", torch.float32)
    again = shared_copy(parts.unet)
    assert again is not parts.unet
    weights = zip(parts.unet.parameters(), again.parameters(), strict=True)
    assert all(a is b for a, b in weights)


def test_topology_of_the_tiny_model_is_that_of_sd21():
    assert UNET_CONFIGS["tiny"].keys() - {"norm_num_groups"} == UNET_CONFIGS["sd21"].keys()
