# SPDX-License-Identifier: Apache-2.0
"""Fused attention against explicit attention, one column against the whole map."""

import pytest
import torch
from diffps_plain import SD21_LAYERS, plain_features
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from diffps.attention import (
    minmax_normalize,
    upcast_attention,
    use_fused_attention,
    word_map,
)
from diffps.loading import DiffusionFolder

PATHS = [path for path, _, _ in SD21_LAYERS.values()]
MAP_PATH = "up_blocks.3.attentions.0.transformer_blocks.0.attn2"


def run(folder, prepare, dtype=torch.float32, map_path=None):
    unet = DiffusionFolder(folder).load_unet(dtype, "any")
    prepare(unet)
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 8, generator=g).to(dtype)
    context = torch.randn(1, 77, 32, generator=g).to(dtype)
    with torch.no_grad():
        outputs, maps = plain_features(unet, latents, 0, context, PATHS, map_path)
    return unet, outputs, maps, context


def test_same_bits_as_the_fused_attention_of_diffusers(tiny_sd):
    _, expected, _, _ = run(tiny_sd, lambda unet: unet.set_attn_processor(AttnProcessor2_0()))
    _, got, _, _ = run(tiny_sd, use_fused_attention)
    assert all(torch.equal(got[path], expected[path]) for path in PATHS)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-4), (torch.float16, 2e-2)])
def test_close_to_explicit_attention(tiny_sd, dtype, limit):
    explicit = lambda unet: unet.set_attn_processor(AttnProcessor())  # noqa: E731
    _, expected, _, _ = run(tiny_sd, explicit, dtype)
    _, got, _, _ = run(tiny_sd, use_fused_attention, dtype)
    for path in PATHS:
        error = (got[path] - expected[path]).float().norm() / expected[path].float().norm()
        assert error < limit, (path, float(error))


def test_sd15_has_the_same_attention(tiny_sd15):
    _, expected, _, _ = run(tiny_sd15, lambda unet: unet.set_attn_processor(AttnProcessor2_0()))
    _, got, _, _ = run(tiny_sd15, use_fused_attention)
    assert all(torch.equal(got[path], expected[path]) for path in PATHS)


def test_keys_of_a_fixed_text_are_computed_once_and_give_the_same_bits(tiny_sd):
    unet, expected, _, context = run(tiny_sd, use_fused_attention)
    use_fused_attention(unet, context)
    calls = []
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(lambda *args: calls.append(args))
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 8, generator=g)
    other = torch.zeros_like(context)  # passed on by the UNet, and ignored
    with torch.no_grad():
        got, _ = plain_features(unet, latents, 0, other, PATHS)
        again, _ = plain_features(unet, latents, 0, other, PATHS)
        assert len(calls) == 2 * 16
        for path in PATHS:
            assert torch.equal(got[path], again[path])
            torch.testing.assert_close(got[path], expected[path], atol=1e-5, rtol=1e-5)
        # one image: the same bits as with keys computed at every call
        use_fused_attention(unet)
        one, _ = plain_features(unet, latents[:1], 0, context, PATHS)
        use_fused_attention(unet, context)
        fixed, _ = plain_features(unet, latents[:1], 0, other, PATHS)
        assert all(torch.equal(one[path], fixed[path]) for path in PATHS)
        # another type: recomputed
        calls.clear()
        plain_features(unet.double(), latents[:1].double(), 0, other.double(), PATHS)
        assert len(calls) == 2 * 16


@pytest.mark.parametrize("heads", [[0], [1], [1, 0], []])
def test_one_column_equals_the_slice_of_the_whole_map(tiny_sd, heads):
    unet, _, maps, context = run(tiny_sd, use_fused_attention, map_path=MAP_PATH)
    queries = []
    attn = unet.get_submodule(MAP_PATH)
    attn.to_q.register_forward_hook(lambda module, args, output: queries.append(output))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        unet(torch.randn(2, 4, 16, 8, generator=g), 0, context.expand(2, -1, -1))
    assert maps.shape == (2, 2, 16 * 8, 77)
    for token in (0, 1, 76):
        got = word_map(queries[0], attn.to_k(context), attn.heads, heads, token)
        expected = maps[:, heads or [0, 1], :, token].mean(1, keepdim=True)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_columns_of_all_tokens_sum_to_one():
    query, key = torch.randn(1, 6, 8), torch.randn(1, 5, 8)
    total = sum(word_map(query, key, 2, [1], token) for token in range(5))
    torch.testing.assert_close(total, torch.ones(1, 1, 6))


def test_word_map_by_hand():
    # one head of width 1: scores are q * k, so the columns are softmax([q, 0])
    query, key = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[1.0], [0.0]]])
    got = word_map(query, key, 1, [0], 0)
    e2 = torch.tensor(2.0).exp()
    torch.testing.assert_close(got, torch.tensor([[[0.5, float(e2 / (e2 + 1))]]]))


def test_upcast_attention_keeps_projections_in_float32(tiny_sd):
    _, full, _, _ = run(tiny_sd, use_fused_attention)

    def both(unet):
        use_fused_attention(unet)
        upcast_attention(unet)

    unet, half, _, _ = run(tiny_sd, both, torch.float16)
    assert unet.conv_in.weight.dtype == torch.float16
    for path in PATHS:
        assert half[path].dtype == torch.float32
        assert (half[path] - full[path]).norm() / full[path].norm() < 2e-2


def test_attention_of_another_kind_is_refused():
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),  # group norm, residual connection
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    with pytest.raises(ValueError, match=r"down_blocks\.0.*not one of Stable Diffusion"):
        use_fused_attention(unet)


def test_minmax_by_hand():
    maps = torch.tensor(
        [[[[1.0, 3.0, 9.0], [2.0, 5.0, 9.0]]], [[[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]]]
    )
    got = minmax_normalize(maps, [(2, 2), (2, 3)])
    assert got[0, 0].tolist() == [[0.0, 0.5, 0.0], [0.25, 1.0, 0.0]]
    assert got[1].abs().max() == 0  # a constant map
    assert maps.max() == 9  # not in place
