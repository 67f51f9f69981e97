# SPDX-License-Identifier: Apache-2.0
"""Visualization of the frozen model: PCA, maps, sheets and the probe."""

import numpy as np
import pytest
import torch
from diffps_tiny import tiny_backbone_cfg
from PIL import Image

from diffps.data import DiffPSMapper
from diffps.dgrpn import AttentionModulator
from diffps.vis.backbone_panels import AttentionOptions, draw_attention, draw_pca, group_by_level
from diffps.vis.head_panels import PEAK_COLOR, draw_peaks
from diffps.vis.maps import cell_to_pixel, colorize, overlay, place_map, unit_range, valid_cells
from diffps.vis.pca import fit_pca, pca_colors, side_by_side
from diffps.vis.probe import DiffusionProbe
from diffps.vis.sheet import Panel, Row, draw_curves, draw_sheet, format_value, stack_sheets
from diffps.vis.subject import make_subject
from person_search.data import MAPPER_REGISTRY, BadImageError


# ---- PCA ----------------------------------------------------------------------------------------
def test_pca_of_points_on_a_line():
    """(t, -2 t) for t = -1, 0, 1: direction (-1, 2) / sqrt(5), its larger entry positive."""
    pca = fit_pca(torch.tensor([[-1.0, 2.0], [0.0, 0.0], [1.0, -2.0]]) + 7)
    assert pca.mean.tolist() == [7, 7]
    torch.testing.assert_close(
        pca.components[0], torch.tensor([-1.0, 2.0]).double() / 5**0.5, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(pca.explained, torch.tensor([1.0, 0.0]).double())
    coordinates = pca(torch.tensor([[8.0, 5.0]]))
    torch.testing.assert_close(coordinates[0, 0], torch.tensor(-(5**0.5)).double())


def test_pca_is_the_same_whatever_the_order_of_the_points():
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    first, second = fit_pca(x), fit_pca(x[order])
    torch.testing.assert_close(first.components, second.components, atol=1e-6, rtol=0)
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T.astype(np.float64), bias=True))
    ours = first.components.numpy()
    np.testing.assert_allclose(np.abs(ours @ vectors[:, ::-1][:, :3]), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(first.explained, values[::-1][:3] / values.sum())
    assert (ours[np.arange(3), np.abs(ours).argmax(axis=1)] > 0).all()


def test_colors_of_a_ramp():
    """One channel that increases from left to right: so does red; green and blue are constant."""
    ramp = torch.linspace(-3, 5, 101).view(1, 1, 101)
    (colors,), (share,) = pca_colors([ramp])
    assert colors.shape == (1, 101, 3)
    assert share.tolist() == [1]
    np.testing.assert_allclose(colors[0, 1:100, 0], np.linspace(0, 1, 99), atol=1e-6)
    assert colors[..., 1:].unique().tolist() == [0.5]


def test_equal_features_have_equal_colors_if_fitted_together():
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(5, 4, 6, generator=generator) for _ in range(2))
    second[:, 1, 2] = first[:, 3, 3]
    (a, b), shares = pca_colors([first, second])
    assert torch.equal(a[3, 3], b[1, 2])
    assert len(shares) == 1
    (c, d), shares = pca_colors([first, second], together=False)
    assert not torch.allclose(c[3, 3], d[1, 2])
    assert len(shares) == 2
    assert torch.equal(c, pca_colors([first])[0][0])


def test_constant_features_are_gray():
    (colors,), (share,) = pca_colors([torch.full((4, 3, 3), 2.5)])
    assert colors.unique().tolist() == [0.5]
    assert share.sum() == 0


def test_every_activation_has_the_same_weight():
    generator = torch.Generator().manual_seed(4)
    small, large = (torch.randn(c, 8, 8, generator=generator) * s + s for c, s in ((3, 1), (5, 99)))
    (joined,) = side_by_side([[small, large]])
    variances = joined.var(dim=(1, 2), correction=0)
    torch.testing.assert_close(variances[:3].sum(), torch.tensor(1.0).double())
    torch.testing.assert_close(variances[3:].sum(), torch.tensor(1.0).double())
    both = side_by_side([[small], [small + 1]])
    assert not torch.allclose(both[0], both[1]), "a shift from one moment to the next stays"


# ---- maps ---------------------------------------------------------------------------------------
def test_a_cell_covers_its_pixels():
    """Cell (x=2, y=1) of stride 8 in a padded input of 20 x 30: pixels 16 to 23, 8 to 15."""
    x = torch.zeros(8, 8)
    x[1, 2] = 1
    placed = place_map(x, 8, (20, 30), (30, 20), smooth=False)
    assert placed.shape == (20, 30)
    wanted = torch.zeros(20, 30)
    wanted[8:16, 16:24] = 1
    assert torch.equal(placed, wanted)
    double = place_map(x, 8, (20, 30), (60, 40), smooth=False)
    assert torch.equal(double[16:32, 32:48], torch.ones(16, 16))
    assert double.sum() == 256


def test_smooth_maps_peak_in_the_middle_of_the_cell():
    x = torch.zeros(4, 5)
    x[3, 1] = 1
    placed = place_map(x, 8, (32, 40), (80, 64))
    top = divmod(int(placed.argmax()), 80)
    center = cell_to_pixel(torch.tensor([1, 3]), 8, (32, 40), (80, 64))
    assert center.tolist() == [24, 56]
    assert abs(top[1] + 0.5 - 24) <= 0.5 and abs(top[0] + 0.5 - 56) <= 0.5


def test_padding_is_not_drawn():
    x = torch.arange(64.0).view(8, 8)
    assert valid_cells(x, 8, (20, 30)).shape == (3, 4)


def test_colors_follow_the_values():
    assert unit_range(torch.tensor([2.0, 3.0, 9.0]), (2, 4)).tolist() == [0, 0.5, 1]
    assert unit_range(torch.ones(2), (1, 1)).tolist() == [0, 0]
    dark, bright = colorize(torch.tensor([[0.0, 1.0]]))[0]
    assert dark.sum() < 20 < 500 < bright.sum()
    heat = np.asarray(overlay(Image.new("RGB", (2, 1), "red"), torch.tensor([[0.0, 1.0]])))
    assert np.ptp(heat[0, 0].astype(int)) < 10, "where the map is low, the image is gray"


def test_peaks_are_marked_where_they_are():
    """A peak in cell (x=6, y=2) of stride 8; the image is twice the input."""
    attention = torch.zeros(1, 1, 8, 8)
    attention[0, 0, 2, 6] = 1
    peaks = AttentionModulator(delta=1.0).find_peaks(attention)
    image = Image.new("RGB", (128, 128))
    draw_peaks(image, peaks, 8, (64, 64), reach=1.0)
    marked = (np.asarray(image) == PEAK_COLOR).all(axis=2)
    assert marked[40, 104], "the cross is in the middle of the cell"
    # one extent is delta, 1 cell, 16 pixels of the image: the ellipse crosses there
    assert marked[40, 119:122].any() and marked[55:58, 104].any()
    assert not marked[:20].any() and not marked[:, :80].any(), "no mark for entries without a peak"


# ---- sheets -------------------------------------------------------------------------------------
def test_sheets_have_room_for_all_panels():
    image = Image.new("RGB", (50, 40), (255, 0, 255))
    panel = Panel(image, "title", "note", (0.0, 0.25))
    sheet = draw_sheet([Row([panel] * 3, "row"), Row([panel])], (300, 240), title="T", caption="c")
    pixels = np.asarray(sheet)
    assert (pixels == (255, 0, 255)).all(axis=2).sum() == 4 * 300 * 240
    assert (pixels[:, -10:] == 255).all() and (pixels[-10:] == 255).all()
    page = stack_sheets([sheet, sheet], "all")
    assert page.width == sheet.width and page.height > 2 * sheet.height


def test_curves_are_sorted():
    image = np.asarray(draw_curves([("gate", [0.0, 1.0], (200, 0, 0))], (200, 100)))
    rows, columns = np.nonzero((image[:70] == (200, 0, 0)).all(axis=2))
    assert columns[rows.argmin()] < columns[rows.argmax()], "from the largest to the least"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1234.5, "1234"), (4.2e-5, "4.2e-05")]
)
def test_values_of_scales(value, text):
    assert format_value(value) == text


# ---- the frozen model ---------------------------------------------------------------------------
@pytest.fixture
def subject(tmp_path):
    def make(cfg, boxes=()):
        pixels = np.random.default_rng(0).integers(0, 256, (96, 120, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        return make_subject(cfg, tmp_path / "image.png", pixels, boxes)

    return make


def probe_cfg(folder, **overrides):
    cfg = tiny_backbone_cfg(folder, **overrides)
    cfg.DATALOADER.MAPPER = "DiffPSMapper"
    return cfg


@pytest.mark.parametrize("heads", [[1], [0, 1], []])
def test_the_probe_equals_the_backbone(tiny_sd, subject, heads):
    from detectron2.modeling import build_backbone

    cfg = probe_cfg(tiny_sd, ATTN__HEADS=heads, TIMESTEP=300, NOISE="seeded")
    seen = subject(cfg)
    pixels = (seen.item["image"][None] - 127.5) / 127.5
    wanted = build_backbone(cfg)(pixels)
    probe = DiffusionProbe(cfg)
    image = probe.encode(seen.item["image"])
    maps = probe.attention(image, "person", ["person"], probe.find_maps(["u3r0"], "k"), 300)
    raw = maps["person", "u3r0_map"]
    assert raw.shape == (2, 16, 16)
    chosen = raw[heads or slice(None)].mean(dim=0)
    stretched = (chosen - chosen.min()) / (chosen.max() - chosen.min())
    torch.testing.assert_close(stretched, wanted["attn"][0, 0], atol=1e-5, rtol=0)
    layers = probe.find_features(list(cfg.MODEL.DIFFPS.BACKBONE.OUT_FEATURES), "k")
    (features,) = probe.features(image, "person", layers, [300])
    for name, x in features.items():
        torch.testing.assert_close(x, wanted[name][0], atol=1e-5, rtol=1e-4)


def test_words_of_a_prompt_and_prompts_of_a_word(tiny_sd, subject):
    probe = DiffusionProbe(cfg := probe_cfg(tiny_sd))
    image = probe.encode(subject(cfg).item["image"])
    layers = probe.find_maps(["u2r1", "u3r0"], "--layers")
    together = probe.attention(image, "person in red shirts", ["person", "shirts"], layers)
    assert {k: tuple(x.shape) for k, x in together.items()} == {
        ("person", "u2r1_map"): (3, 8, 8),
        ("person", "u3r0_map"): (2, 16, 16),
        ("shirts", "u2r1_map"): (3, 8, 8),
        ("shirts", "u3r0_map"): (2, 16, 16),
    }
    again = probe.attention(image, "person in red shirts", ["shirts"], layers)
    assert torch.equal(again["shirts", "u3r0_map"], together["shirts", "u3r0_map"])
    alone = probe.attention(image, "shirts", ["shirts"], layers)
    assert not torch.allclose(alone["shirts", "u3r0_map"], together["shirts", "u3r0_map"])


def test_errors_name_what_is_possible(tiny_sd, subject):
    probe = DiffusionProbe(cfg := probe_cfg(tiny_sd))
    seen = subject(cfg)
    image = probe.encode(seen.item["image"])
    with pytest.raises(ValueError, match=r"--layers names 'u9r0_map'.*u3r0_\(map\)"):
        probe.find_maps(["u9r0"], "--layers")
    with pytest.raises(ValueError, match=r"--features names 'u3r0_map'.*u3r0_\(res\|q\|k\|v"):
        probe.find_features(["u3r0_map"], "--features")
    layers = probe.find_maps(["u3r0"], "--layers")
    with pytest.raises(ValueError, match="'umbrella'.* tokens in this text encoder"):
        probe.attention(image, "umbrella", ["umbrella"], layers)
    with pytest.raises(ValueError, match="'pants' is not in the prompt 'red shirts'"):
        probe.attention(image, "red shirts", ["pants"], layers)
    with pytest.raises(ValueError, match=r"--heads has \[7\], but u3r0 has heads 0 to 1"):
        draw_attention(probe, image, seen, AttentionOptions(["person"], heads=[7]), (200, 160))
    with pytest.raises(ValueError, match="TIMESTEP is 1000"):
        probe.features(image, "person", probe.find_features(["u3r0_q"], "k"), [1000])
    with pytest.raises(ValueError, match="fit of the PCA is 'all'"):
        draw_pca(probe, image, seen, {}, "person", [0], "all", (200, 160))
    with pytest.raises(ValueError, match="the scale of attention is 'own'"):
        AttentionOptions(["person"], scale="own")


def test_sheets_of_the_backbone_have_all_panels(tiny_sd, subject):
    probe = DiffusionProbe(cfg := probe_cfg(tiny_sd))
    seen = subject(cfg)
    image = probe.encode(seen.item["image"])
    options = AttentionOptions(["person", "head"], places=["u3r0", "u2r1"], average=False)
    sheet = draw_attention(probe, image, seen, options, (200, 160))
    assert sheet.width == 18 + 132 + 12 + 3 * 200 + 2 * 12 + 18, "image and two words"
    assert sheet.height > 5 * 160, "two heads of one layer and three of the other"
    again = draw_attention(probe, image, seen, options, (200, 160))
    assert np.array_equal(sheet, again)
    groups = group_by_level(["u1r2_q", "u2r1_v", "u2r2_q", "u3r0_k"])
    assert groups == {
        "up-level 1": ["u1r2_q"],
        "up-level 2": ["u2r1_v", "u2r2_q"],
        "up-level 3": ["u3r0_k"],
    }
    probe.noise = "seeded"
    arguments = (probe, image, seen, groups, "person", [0, 500], "level", (200, 160))
    sheet = draw_pca(*arguments)
    assert sheet.width == 18 + 132 + 12 + 3 * 200 + 2 * 12 + 18
    assert sheet.height > 3 * 160
    assert np.array_equal(sheet, draw_pca(*arguments))


def test_the_mapper_scales_the_boxes(tiny_sd, subject):
    seen = subject(probe_cfg(tiny_sd), [[12.0, 24.0, 60.0, 96.0]])
    assert seen.input_size == (128, 128)
    torch.testing.assert_close(seen.input_boxes.tensor, torch.tensor([[12.8, 32, 64, 128]]))
    assert seen.scaled(60, 60).size == (60, 48)


def test_a_mapper_that_leaves_images_out(tiny_sd, subject):
    class Choosy(DiffPSMapper):
        def __call__(self, record):
            return None

    MAPPER_REGISTRY.register(Choosy)
    cfg = probe_cfg(tiny_sd)
    cfg.DATALOADER.MAPPER = "Choosy"
    with pytest.raises(ValueError, match="mapper Choosy leaves out .*image.png"):
        subject(cfg)


def test_a_file_that_is_not_an_image(tiny_sd, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(BadImageError, match="cannot read the image"):
        make_subject(probe_cfg(tiny_sd), tmp_path / "text.jpg", np.zeros((8, 8, 3), np.uint8))
