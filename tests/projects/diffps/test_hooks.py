# SPDX-License-Identifier: Apache-2.0
"""Names of layers, and the hooks behind them."""

import copy
import re

import pytest
import torch
from diffps_plain import SD21_LAYERS

from diffps.hooks import ActivationTap, find_layers, list_layers, short_name
from diffps.loading import DiffusionFolder

KEY = "MODEL.DIFFPS.BACKBONE.OUT_FEATURES"


@pytest.fixture(scope="module")
def unet(tiny_sd):
    return DiffusionFolder(tiny_sd).load_unet(torch.float32, "any")


@pytest.fixture(scope="module")
def layers(unet):
    return list_layers(unet)


def test_layers_of_the_specification(layers):
    for name, (path, _, stride) in SD21_LAYERS.items():
        assert (layers[name].module, layers[name].stride) == (path, stride)
    attn2 = "up_blocks.3.attentions.0.transformer_blocks.0.attn2"
    assert layers["u3r0_map"].module.rpartition(".")[0] == attn2
    assert (layers["u3r0_map"].stride, layers["u3r0_map"].channels) == (8, 1)


def test_first_up_block_has_no_attention(layers):
    assert [name for name in layers if name.startswith("u0")] == [
        "u0r0_res",
        "u0r1_res",
        "u0r2_res",
    ]


@pytest.mark.parametrize(
    "name, short",
    [
        ("up-level1-repeat2-vit-block0-self-q", "u1r2_q"),
        ("up-level3-repeat0-vit-block0-cross-map", "u3r0_map"),
        ("mid-level0-repeat0-vit-block0-cross-q", "m0r0_xq"),
        ("down-level2-repeat1-vit-block3-self-v", "d2r1b3_v"),
        ("up-level1-repeat0-vit-out", "u1r0_vit"),
        ("up-level0-repeat2-res-out", "u0r2_res"),
        ("u1r2b0_q", "u1r2_q"),
        ("u3r1_k", "u3r1_k"),
        ("up-level1-repeat2-vit-block0-cross-k", None),  # one per token, not per cell
        ("up-level1-repeat2-vit-block0-self-map", None),
        ("up-level1-repeat2-self-q", None),
        ("u1r2b1_res", None),
        ("res4", None),
        ("", None),
    ],
)
def test_long_and_short_names(name, short):
    assert short_name(name) == short


def test_every_name_is_found_by_both_forms(layers):
    for name in layers:
        assert find_layers([name], layers, KEY) == [layers[name]]
        assert short_name(name) == name


@pytest.mark.parametrize("name", ["u4r0_q", "u0r0_q", "up-level1-repeat3-vit-block0-self-q", "x"])
def test_wrong_names_are_refused_with_the_valid_ones(layers, name):
    with pytest.raises(ValueError) as error:
        find_layers([name], layers, KEY)
    text = str(error.value)
    assert KEY in text and repr(name) in text
    listed = {
        f"{place}_{kind}" for place, kinds in re.findall(r"(\w+)_\(([\w|]+)\)", text)
        for kind in kinds.split("|")
    }  # fmt: skip
    assert listed == set(layers)


def test_a_layer_given_twice_is_refused(layers):
    with pytest.raises(ValueError, match="names u3r0_k twice"):
        find_layers(["u3r0_k", "up-level3-repeat0-vit-block0-self-k"], layers, KEY)


def test_kinds_can_be_limited(layers):
    with pytest.raises(ValueError, match="u3r0_k"):
        find_layers(["u3r0_k"], layers, KEY, kinds=("map",))


def run(unet, tap, truncate, size=(16, 8)):
    g = torch.Generator().manual_seed(0)
    latents, context = torch.randn(1, 4, *size, generator=g), torch.randn(1, 77, 32, generator=g)
    with torch.no_grad(), tap.record(size, truncate) as outputs:
        unet(latents, 0, context)
    return outputs


def all_taps(unet, names=None):
    layers = list_layers(unet)
    # a map needs a prompt; here its query stands in, averaged over channels
    tap = ActivationTap(
        [layers[n] for n in names or layers], 8, lambda layer, q: q.mean(2)[:, None]
    )
    tap.attach(unet)
    return tap


def test_every_layer_has_the_channels_and_the_stride_it_states(unet):
    tap = all_taps(unet := copy.deepcopy(unet))
    outputs = run(unet, tap, truncate=False)
    assert len(outputs) == len(tap.layers)
    for layer in tap.layers:
        expected = (1, layer.channels, 128 // layer.stride, 64 // layer.stride)
        assert outputs[layer.name].shape == expected, layer.name


def test_tokens_become_cells_row_by_row(unet):
    tap = all_taps(unet := copy.deepcopy(unet), ["u3r0_q"])
    seen = []
    path = tap.layers[0].module
    unet.get_submodule(path).register_forward_hook(lambda m, a, output: seen.append(output))
    got = run(unet, tap, truncate=False)["u3r0_q"]
    assert torch.equal(got[0, :, 3, 5], seen[0][0, 3 * 8 + 5])


def test_a_tap_without_to_map_refuses_a_map(unet):
    layers = list_layers(unet := copy.deepcopy(unet))
    tap = ActivationTap([layers["u3r0_map"]], 8)
    tap.attach(unet)
    with pytest.raises(ValueError, match="u3r0_map is an attention map"):
        run(unet, tap, truncate=False)


def test_truncation_ends_after_the_last_layer(unet):
    tap = all_taps(unet := copy.deepcopy(unet), list(SD21_LAYERS))
    ran = []
    for path in ("up_blocks.3.attentions.1.transformer_blocks.0.attn1.to_v", "conv_out"):
        unet.get_submodule(path).register_forward_hook(lambda m, a, o, path=path: ran.append(path))
    full = run(unet, tap, truncate=False)
    assert len(ran) == 2
    ran.clear()
    cut = run(unet, tap, truncate=True)
    assert not ran
    assert list(cut) == list(full) and all(torch.equal(cut[n], full[n]) for n in full)


def test_hooks_have_no_effect_outside_a_recording(unet):
    tap = all_taps(unet := copy.deepcopy(unet))
    outputs = run(unet, tap, truncate=True)
    kept = {name: x.clone() for name, x in outputs.items()}
    with torch.no_grad():
        sample = unet(torch.randn(1, 4, 8, 8), 0, torch.randn(1, 77, 32)).sample
    assert sample.shape == (1, 4, 8, 8)
    assert all(torch.equal(kept[n], outputs[n]) for n in kept)


def test_errors_of_the_unet_pass_through_and_leave_the_tap_usable(unet):
    tap = all_taps(unet := copy.deepcopy(unet), ["u3r1_k"])
    with pytest.raises(RuntimeError), tap.record((8, 8), True):
        unet(torch.randn(1, 5, 8, 8), 0, torch.randn(1, 77, 32))
    assert list(run(unet, tap, truncate=True)) == ["u3r1_k"]


def test_a_deep_copy_records_into_the_copy(unet):
    tap = all_taps(unet := copy.deepcopy(unet), ["u1r2_q"])
    unet2, tap2 = copy.deepcopy((unet, tap))
    assert list(run(unet2, tap2, truncate=True)) == ["u1r2_q"]
