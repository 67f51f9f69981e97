# SPDX-License-Identifier: Apache-2.0
"""Sheets of the trainable parts: DGRPN, MSFRN and SFAN at work on one image.

Shape shorthand: B = 1 image, N boxes, K parts, (h, w) cells.

All values come from the methods that the forward pass of each part uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from diffps.dgrpn import AttentionPeaks
from diffps.meta_arch import DiffPS
from diffps.vis.maps import (
    cell_to_pixel,
    overlay,
    place_map,
    root_mean_square,
    unit_range,
    valid_cells,
    value_range,
)
from diffps.vis.sheet import Panel, Row, draw_curves, draw_sheet
from diffps.vis.subject import Subject
from person_search.vis.drawing import to_image

BANDS = ("LL", "LH", "HL", "HH")
_BAND_WORDS = ("average", "top against bottom", "left against right", "diagonal")
_BAND_COLORS = ((90, 90, 100), (31, 98, 178), (200, 80, 20), (0, 132, 92))
PEAK_COLOR, RIM_COLOR = (64, 230, 255), (10, 20, 30)
_UNTRAINED = "UNTRAINED WEIGHTS: this shows how the part works, not what it has learnt. "


@dataclass(frozen=True)
class HeadsView:
    """A model and the activations of one image.

    Attributes:
        model: Model to visualize.
        subject: Image.
        features: Activations and detection maps.
        trained: Whether the model has trained weights.
    """

    model: DiffPS
    subject: Subject
    features: dict[str, Tensor]
    trained: bool

    @classmethod
    @torch.no_grad()
    def run(cls, model: DiffPS, subject: Subject, trained: bool) -> "HeadsView":
        """Runs the frozen backbone, DetAggregator and the modulation of DGRPN."""
        _, features = model.activations([subject.item])
        return cls(model, subject, features | model.detection_maps(features), trained)

    def caption(self, text: str) -> str:
        """Returns a caption, with a warning if the weights are untrained."""
        return text if self.trained else _UNTRAINED + text

    def stride(self, x: Tensor) -> int:
        """Returns the stride of a map of the whole (padded) image in pixels."""
        padded = self.model.backbone.size_divisibility
        height = -(-self.subject.input_size[0] // padded) * padded
        return height // x.shape[-2]

    def heat(
        self, x: Tensor, scene: Image.Image, limits: tuple[float, float] | None = None
    ) -> tuple[Image.Image, tuple[float, float]]:
        """Draws a map (h, w) over the image; returns it with the limits of its colors.

        Returns:
            The drawn image and the limits.
        """
        stride = self.stride(x)
        x = x.float().cpu()
        limits = limits or value_range([valid_cells(x, stride, self.subject.input_size)])
        placed = place_map(unit_range(x, limits), stride, self.subject.input_size, scene.size)
        return overlay(scene, placed), limits


# ---- DGRPN --------------------------------------------------------------------------------------
@torch.no_grad()
def draw_dgrpn(view: HeadsView, panel_size: tuple[int, int]) -> Image.Image:
    """Draws attention, its peaks, their Gaussians, and the detection map before and after."""
    modulator = view.model.proposal_generator.modulator
    if modulator is None:
        raise ValueError("MODEL.DIFFPS.DGRPN.ENABLED is False: there is no modulation to draw.")
    attention = view.features["attn"]
    peaks = modulator.find_peaks(attention)
    gaussians = modulator.gaussians(attention)[0, 0]
    beta, gamma = float(modulator.beta.abs()), float(modulator.gamma)
    scene, subject = view.subject.scaled(*panel_size), view.subject
    stride = view.stride(attention)
    found = int(peaks.valid.sum())
    looks, _ = view.heat(attention[0, 0], scene, (0.0, 1.0))
    bumps, _ = view.heat(gaussians, scene, (0.0, 1.0))
    draw_peaks(looks, peaks, stride, subject.input_size)
    draw_peaks(bumps, peaks, stride, subject.input_size, reach=beta**0.5)
    before, after = (root_mean_square(view.features[name][0].cpu()) for name in ("det", "guided"))
    limits = value_range([valid_cells(x, stride, subject.input_size) for x in (before, after)])
    gain, gain_limits = view.heat(1 + gamma * gaussians, scene)
    count = len(subject.boxes)
    boxes = f"{count} boxes, {subject.boxes_from}" if count else "no boxes are known"
    first = Row(
        [
            Panel(subject.with_boxes(scene), subject.name, boxes),
            Panel(subject.with_boxes(looks), "attention and its peaks",
                  f"{found} peaks above τ = {modulator.tau:g}", (0.0, 1.0)),
            Panel(bumps, "Gaussians G (Eq. 2, 3)", "ellipse: fallen to 1/e",
                  (0.0, 1.0)),
        ]
    )  # fmt: skip
    maps = [view.heat(x, scene, limits)[0] for x in (before, after)]
    second = Row(
        [
            Panel(maps[0], "detection map before", "strength over channels", limits),
            Panel(gain, "factor 1 + γ G (Eq. 4)", f"γ = {gamma:.3g}, β = {beta:.3g}", gain_limits),
            Panel(maps[1], "detection map after", "the same scale as before", limits),
        ]
    )
    return draw_sheet(
        [first, second],
        panel_size,
        title="DGRPN: feature map amplified by attention",
        caption=view.caption(
            "Each peak of the attention has a Gaussian as wide as the attention around it, which "
            "amplifies the input of the RPN."
        ),
    )


def draw_peaks(
    image: Image.Image,
    peaks: AttentionPeaks,
    stride: int,
    input_size: Sequence[int],
    reach: float | None = None,
) -> None:
    """Marks the valid peaks of the first image, in place.

    Args:
        image: The whole image at any size.
        peaks: Peaks of the attention.
        stride: Stride of the attention in pixels of the input.
        input_size: Height and width of the input.
        reach: Radius in extents of an ellipse around each peak. Default: no ellipse.
    """
    draw = ImageDraw.Draw(image)
    valid = peaks.valid[0].cpu()
    centers = cell_to_pixel(peaks.cells[0].cpu()[valid], stride, input_size, image.size)
    factors = [p / i for p, i in zip(image.size, reversed(input_size), strict=True)]
    extents = peaks.extents[0].cpu()[valid].double() * stride * torch.tensor(factors).double()
    if reach is not None:
        for (x, y), (a, b) in zip(centers.tolist(), (extents * reach).tolist(), strict=True):
            draw.ellipse((x - a, y - b, x + a, y + b), outline=PEAK_COLOR, width=2)
    for x, y in centers.tolist():
        for color, arm, width in ((RIM_COLOR, 6, 5), (PEAK_COLOR, 5, 3)):
            draw.line((x - arm, y, x + arm, y), color, width)
            draw.line((x, y - arm, x, y + arm), color, width)


# ---- MSFRN --------------------------------------------------------------------------------------
@torch.no_grad()
def draw_msfrn(view: HeadsView, panel_size: tuple[int, int], level: int = -1) -> Image.Image:
    """Draws one level before and after its refinement, with the sub-bands and their gates.

    Args:
        view: Model and image.
        panel_size: (width, height) of a panel.
        level: Index into MODEL.DIFFPS.MSFRN.LEVELS; the coarsest, 0, is not refined.
    """
    levels = list(view.model.msfrn.merge(view.features))
    refined = [i for i, x in enumerate(levels) if x.refinement is not None]
    index = level if level >= 0 else len(levels) + level
    if index not in refined:
        raise ValueError(f"--msfrn-level is {level}; levels with a refinement: {refined or 'none'}")
    step = levels[index]
    scene = view.subject.scaled(*panel_size)
    change = (step.output - step.summed)[0]
    panels = [Panel(scene, view.subject.name)]
    for title, x in (("before", step.summed[0]), ("after", step.output[0]),
                     ("difference", change)):  # fmt: skip
        image, limits = view.heat(root_mean_square(x.cpu()), scene)
        panels.append(Panel(image, title, limits=limits))
    first = Row(panels, f"level {index + 1} of {len(levels)}\n{', '.join(step.names)}")
    gammas = [1.0, *view.model.msfrn.refine[index - 1].gamma.tolist()]
    rows = [first, *_band_rows(view, step.refinement, gammas, scene)]
    return draw_sheet(
        rows,
        panel_size,
        title="MSFRN: a level refined in the wavelet domain (Eq. 5)",
        caption=view.caption(
            "Color: root mean square over the channels; every panel has its own scale. Sub-bands "
            "of the Haar transform: LL is the average, the others contain edges."
        ),
    )


def _band_rows(view: HeadsView, refinement, gammas: list[float], scene: Image.Image) -> list[Row]:
    """Returns rows of the sub-bands before and after, and of the gates."""
    panels: list[list[Panel]] = [[], []]
    for name, words, *pair in zip(
        BANDS, _BAND_WORDS, refinement.bands, refinement.refined_bands, strict=True
    ):
        for side, x in enumerate(pair):
            image, limits = view.heat(root_mean_square(x[0].cpu()), scene)
            title = f"{name}, {words}" if side == 0 else f"{name}, refined"
            panels[side].append(Panel(image, title, limits=limits))
    gates = []
    for index, gate in enumerate(refinement.gates):
        if gate is None:
            image = draw_curves([("not gated", [1.0, 1.0], _BAND_COLORS[index])], scene.size)
            gates.append(Panel(image, f"{BANDS[index]}: unchanged"))
            continue
        values = gate.flatten().tolist()
        image = draw_curves([("gate", values, _BAND_COLORS[index])], scene.size)
        note = f"mean {sum(values) / len(values):.2f}, strength γ = {gammas[index]:.3g}"
        gates.append(Panel(image, f"{BANDS[index]}: gates, sorted", note))
    return [
        Row(panels[0], "sub-bands before"),
        Row(panels[1], "sub-bands after"),
        Row(gates, "gates\nOne per channel"),
    ]


# ---- SFAN ---------------------------------------------------------------------------------------
@torch.no_grad()
def draw_sfan(
    view: HeadsView, words: Sequence[str], tile: tuple[int, int], most: int = 4
) -> Image.Image:
    """Draws one row per box: the person, the map of each part, and the resulting factor.

    Args:
        view: Model and image.
        words: The parts of MODEL.DIFFPS.SFAN.PARTS.
        tile: (width, height) of a panel; boxes are stretched to it, as in pooling.
        most: Maximum number of boxes.
    """
    head, subject = view.model.roi_heads.reid_head, view.subject
    if not hasattr(head.sfan, "weigh"):
        raise ValueError("MODEL.DIFFPS.SFAN.ENABLED is False: there are no part maps to draw.")
    if not len(subject.boxes):
        raise ValueError("SFAN needs a box: use --box X1 Y1 X2 Y2, or --dataset for its boxes.")
    features = {head.in_feature: view.model.msfrn(view.features)}
    boxes = subject.input_boxes[torch.arange(min(most, len(subject.boxes)))].to(view.model.device)
    weights = head.sfan.weigh(head.pool(features, [boxes]))
    parts, totals = weights.part_maps.cpu(), weights.total[:, 0].cpu()
    shares = weights.part_weights.tolist()
    strength = f"α = {float(head.sfan.alpha):.3g}" if head.sfan.skip else ""
    rows = []
    for index, box in enumerate(subject.boxes[:most]):
        person = to_image(subject.image).resize(tile, Image.Resampling.LANCZOS, box=tuple(box))
        panels = [Panel(person, f"person {index + 1}", f"box: {subject.boxes_from}")]
        limits = value_range([parts[index]])
        for word, share, x in zip(words, shares, parts[index], strict=True):
            image = overlay(person, place_pooled(unit_range(x, limits), tile))
            panels.append(Panel(image, f"“{word}”", f"weight {share:.3f}", limits))
        limits = value_range([totals[index]])
        image = overlay(person, place_pooled(unit_range(totals[index], limits), tile))
        panels.append(Panel(image, "factor", strength, limits))
        rows.append(Row(panels))
    h, w = parts.shape[2:]
    return draw_sheet(
        rows,
        tile,
        title="SFAN: similarity of cells to parts",
        caption=view.caption(
            f"Pooled to {h} × {w} cells and compared with the text of each part; the part maps of "
            "a person share one scale. The weighted sum of the parts gives the factor of the "
            "features."
        ),
    )


def place_pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarges the cells (h, w) of a pooled box to (width, height) pixels."""
    return place_map(x, 1, x.shape, size)
