# SPDX-License-Identifier: Apache-2.0
"""Visualization of DGRPN, MSFRN and SFAN: the drawn values are those of the forward pass."""

import numpy as np
import pytest
import torch
from diffps_model_tiny import tiny_cfg
from PIL import Image

from diffps.dgrpn import AttentionModulator
from diffps.msfrn import MSFRN
from diffps.sfan import SFAN
from diffps.vis.head_panels import HeadsView, draw_dgrpn, draw_msfrn, draw_sfan, place_pooled
from diffps.vis.subject import make_subject

PANEL = (200, 160)


def view_of(folder, tmp_path, boxes, **overrides):
    from detectron2.modeling import build_model

    cfg = tiny_cfg(folder, **overrides)
    cfg.DATALOADER.MAPPER = "DiffPSMapper"
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (96, 120, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    subject = make_subject(cfg, tmp_path / "image.png", pixels, boxes)
    return HeadsView.run(model, subject, trained=False)


@pytest.fixture(scope="module")
def view(tiny_sd, tmp_path_factory):
    boxes = [[10, 8, 50, 90], [60, 10, 90, 80]]
    return view_of(tiny_sd, tmp_path_factory.mktemp("vis"), boxes)


def small_msfrn(**options):
    torch.manual_seed(2)
    levels = [["a"], ["b", "c"], ["d"]]
    net = MSFRN(levels=levels, in_channels=[4, 3, 2], dim=8, **options).eval()
    with torch.no_grad():
        for refine in net.refine:
            if hasattr(refine, "gamma"):
                refine.gamma.copy_(torch.tensor([0.5, 2.0, -1.0]))
    sizes = {"a": (4, 2, 3), "b": (3, 4, 6), "c": (3, 4, 6), "d": (2, 8, 12)}
    return net, {name: torch.randn(1, *size) for name, size in sizes.items()}


# ---- values of the forward pass ------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"mode": "paper", "refine_ll": True, "residual": False}])
def test_levels_of_msfrn_lead_to_its_output(options):
    net, features = small_msfrn(**options)
    levels = list(net.merge(features))
    assert [level.names for level in levels] == net.levels
    assert levels[0].refinement is None and levels[0].output is levels[0].summed
    assert torch.equal(net.output(levels[-1].output), net(features))
    refinement = levels[1].refinement
    assert [gate is None for gate in refinement.gates] == [not net.refine[0].refine_ll] + [
        False
    ] * 3
    if options:
        for band, refined, gate, gamma in zip(
            refinement.bands, refinement.refined_bands, refinement.gates,
            [1.0, *net.refine[0].gamma.tolist()], strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(refined, band * gate * gamma)
    else:
        assert torch.equal(refinement.bands[0], refinement.refined_bands[0])


def test_levels_without_refinement():
    net, features = small_msfrn(refine=False)
    assert all(level.refinement is None for level in net.merge(features))


@torch.no_grad()
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("norm", ["part", "spatial", "sigmoid"])
def test_weights_of_sfan_are_those_of_its_forward(norm, skip):
    torch.manual_seed(1)
    sfan = SFAN(text_vectors=torch.randn(3, 8), channels=8, norm=norm, skip=skip)
    sfan.part_weights.copy_(torch.tensor([0.0, 1.0, 2.0]))
    x = torch.randn(2, 8, 4, 3)
    weights = sfan.weigh(x)
    assert torch.equal(sfan(x), x * weights.total)
    torch.testing.assert_close(weights.part_weights.sum(), torch.tensor(1.0))
    total = torch.einsum("k,nkhw->nhw", weights.part_weights, weights.part_maps)[:, None]
    torch.testing.assert_close(weights.total, 1 + 0.5 * (total - 1) if skip else total)


def test_peaks_of_the_modulator_are_those_of_its_gaussians():
    attention = torch.rand(2, 1, 12, 15, generator=torch.Generator().manual_seed(0))
    modulator = AttentionModulator(delta=1.5, topk=3)
    scores, cells, valid, extents = modulator.find_peaks(attention)
    assert torch.equal(scores, modulator.scores(attention[:, 0]))
    gaussians = modulator.gaussians(attention)[:, 0]
    ys, xs = torch.meshgrid(torch.arange(12), torch.arange(15), indexing="ij")
    for image in range(2):
        wanted = torch.zeros(12, 15)
        for (x, y), good, (s_w, s_h) in zip(
            cells[image], valid[image], extents[image], strict=True
        ):
            if good:
                bump = torch.exp(-(((xs - x) / s_w) ** 2) - ((ys - y) / s_h) ** 2)
                wanted = torch.maximum(wanted, bump)
        torch.testing.assert_close(gaussians[image], wanted, atol=1e-5, rtol=0)


def test_cells_of_a_pooled_box_cover_its_crop():
    x = torch.zeros(6, 3)
    x[5, 0] = 1
    placed = place_pooled(x, (30, 60))
    assert placed.shape == (60, 30)
    assert (placed[55:, :5] == 1).all(), "the last row and first column of cells"
    assert placed[:45].sum() == 0 and placed[:, 15:].sum() == 0


# ---- sheets -------------------------------------------------------------------------------------
def test_features_are_those_of_the_model(view):
    images, features = view.model.activations([view.subject.item])
    assert torch.equal(features["attn"], view.features["attn"])
    assert view.stride(view.features["attn"]) == 8
    assert view.stride(view.features["u1r2_q"]) == 32
    assert {"det", "guided"} <= set(view.features)


def test_sheets_have_their_panels(view):
    sheet = draw_dgrpn(view, PANEL)
    assert sheet.width == 18 + 3 * 200 + 2 * 12 + 18
    assert sheet.height > 2 * 160
    sheet = draw_msfrn(view, PANEL)
    assert sheet.width == 18 + 132 + 12 + 4 * 200 + 3 * 12 + 18
    assert sheet.height > 4 * 160
    assert draw_msfrn(view, PANEL, 1).size != (0, 0)
    words = ["head", "shirts", "pants", "shoes"]
    sheet = draw_sfan(view, words, (90, 210))
    assert sheet.width == max(640, 18 + 6 * 90 + 5 * 12 + 18)
    assert sheet.height > 2 * 210
    assert draw_sfan(view, words, (90, 210), most=1).height < sheet.height
    assert np.array_equal(draw_sfan(view, words, (90, 210)), sheet)


def test_captions_mark_untrained_weights(view):
    assert view.caption("x").startswith("UNTRAINED")
    assert HeadsView(view.model, view.subject, {}, trained=True).caption("x") == "x"


def test_what_cannot_be_drawn(view, tiny_sd, tmp_path):
    with pytest.raises(ValueError, match=r"--msfrn-level is 0; levels with a refinement: \[1, 2\]"):
        draw_msfrn(view, PANEL, 0)
    other = view_of(
        tiny_sd, tmp_path, [], DIFFPS__DGRPN__ENABLED=False, DIFFPS__SFAN__ENABLED=False
    )
    with pytest.raises(ValueError, match="DGRPN.ENABLED is False"):
        draw_dgrpn(other, PANEL)
    with pytest.raises(ValueError, match="SFAN.ENABLED is False"):
        draw_sfan(other, ["head"], (90, 210))
    without = HeadsView(view.model, other.subject, view.features, trained=False)
    with pytest.raises(ValueError, match="SFAN needs a box"):
        draw_sfan(without, ["head"], (90, 210))
