# SPDX-License-Identifier: Apache-2.0
"""Visualizes the denoising of boxes and embeddings as a strip of panels or an animation.

Boxes are XYXY pixels of the scene; all other sizes are pixels of the drawing.
Shape shorthand in this file: N proposals, the same rows at every step.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from person_search.vis.drawing import (
    NEUTRAL_COLOR,
    QUERY_COLOR,
    TEXT_COLOR,
    UNCHECKED_COLOR,
    WHITE,
    Area,
    crop_person,
    draw_box,
    fitted_size,
    font,
    paste_fitted,
    shorten,
    to_image,
    wrap,
)

BEST_COLOR, PERSON_COLOR = UNCHECKED_COLOR, (24, 118, 128)
FAINT_COLOR = (255, 214, 64)
"""Color of boxes that are not a detection; bright because they are drawn transparently."""

MARGIN, GAP = 20, 12
HEAD, FOOT = 34, 30  # heights of the title of a panel and of the line below its scene
QUERY_WIDTH = 170
MAX_COLUMNS = 4
LABEL_SIZE = 13
LEGEND_HEIGHT = 44
STEP_MS, FIRST_MS, LAST_MS = 900, 1400, 3000
"""Durations of a step, the noise and the result in the animation, in milliseconds."""


@dataclass(frozen=True)
class DenoisingPanel:
    """Proposals at one step.

    Attributes:
        title: Title, for example "Step 2 of 4, t = 749".
        boxes: Boxes (N, 4).
        scores: Detection scores (N,), 0 to 1; None before the first step.
        sims: Similarities (N,) to the query, -1 to 1; None without a query.
        persons: Rows that are detections, best first; the others are drawn faintly.
        final: Marks the result.
    """

    title: str
    boxes: np.ndarray
    scores: np.ndarray | None = None
    sims: np.ndarray | None = None
    persons: Sequence[int] = ()
    final: bool = False

    @property
    def best(self) -> int | None:
        """Row of the detection that is most similar to the query."""
        if self.sims is None or not len(self.persons):
            return None
        return max(self.persons, key=self.sims.__getitem__)

    @property
    def note(self) -> str:
        """Summary of the detections."""
        if self.scores is None:
            return f"{len(self.boxes)} random boxes"
        count = len(self.persons)
        found = {0: "no detection", 1: "1 detection"}.get(count, f"{count} detections")
        if self.best is None or self.sims is None:
            return found
        return f"{found}, best match R {self.sims[self.best]:.2f}"


@dataclass(frozen=True)
class StripQuery:
    """Person that the similarities refer to.

    Attributes:
        image: RGB image (H, W, 3) uint8.
        box: Bounding box of the person in it.
    """

    image: np.ndarray
    box: Sequence[float]


def draw_denoising_strip(
    image: np.ndarray,
    panels: Sequence[DenoisingPanel],
    query: StripQuery | None = None,
    *,
    title: str = "",
    caption: str = "",
    panel_width: int = 460,
) -> Image.Image:
    """Draws all panels in rows of at most four, below a legend.

    Args:
        image: Scene, RGB (H, W, 3) uint8.
        panels: Panels in temporal order, at least one.
        query: Query, drawn on the left.
        title: Heading.
        caption: Text below the heading.
        panel_width: Width of one scene.
    """
    scene = to_image(image)
    size = panel_width, max(1, round(panel_width * scene.height / scene.width))
    rows = -(-len(panels) // MAX_COLUMNS)
    columns = -(-len(panels) // rows)
    left = MARGIN + (QUERY_WIDTH + 2 * GAP if query else 0)
    width = left + columns * (size[0] + GAP) - GAP + MARGIN
    lines = wrap(caption, font(18), width - 2 * MARGIN)
    head = MARGIN + (42 if title else 0) + 25 * len(lines) + LEGEND_HEIGHT
    card = size[0], HEAD + size[1] + FOOT
    sheet = Image.new("RGB", (width, head + rows * (card[1] + GAP) - GAP + MARGIN), WHITE)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    if title:
        face = font(26, bold=True)
        draw.text((MARGIN, top), shorten(title, face, width - 2 * MARGIN), TEXT_COLOR, face)
        top += 42
    for line in lines:
        draw.text((MARGIN, top), line, TEXT_COLOR, font(18))
        top += 25
    _draw_legend(sheet, (MARGIN, top + 4), query is not None)
    if query:
        _draw_query(sheet, (MARGIN, head, QUERY_WIDTH, card[1]), query)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        corner = left + column * (card[0] + GAP), head + row * (card[1] + GAP)
        sheet.paste(_draw_panel(scene, panel, size), corner)
    return sheet


def draw_denoising_frames(
    image: np.ndarray,
    panels: Sequence[DenoisingPanel],
    query: StripQuery | None = None,
    *,
    width: int = 560,
) -> list[Image.Image]:
    """Draws one frame per panel, of equal size: query, scene, progress bar and legend."""
    scene = to_image(image)
    size = fitted_size(scene.size, (width, width))
    side = QUERY_WIDTH + GAP if query else 0
    # Wide enough for the legend.
    whole = max(size[0] + side, 480) + 2 * GAP
    height = HEAD + size[1] + FOOT
    frames = []
    for index, panel in enumerate(panels):
        frame = Image.new("RGB", (whole, height + 18 + (70 if query else 40) + 2 * GAP), WHITE)
        if query:
            _draw_query(frame, (GAP, GAP, QUERY_WIDTH, height), query)
        frame.paste(_draw_panel(scene, panel, size), (GAP + side, GAP))
        _draw_progress(frame, (GAP, GAP + height + 6, whole - 2 * GAP, 8), index, len(panels))
        _draw_legend(frame, (GAP, GAP + height + 24), query is not None, in_two_rows=True)
        frames.append(frame)
    return frames


def encode_animation(frames: Sequence[Image.Image]) -> bytes:
    """Encodes frames as a looping GIF."""
    buffer = io.BytesIO()
    durations = [FIRST_MS, *[STEP_MS] * (len(frames) - 2), LAST_MS][-len(frames) :]
    # One palette for all frames, with all colors, prevents flicker of the scene.
    ends = Image.new("RGB", (frames[0].width, 2 * frames[0].height))
    ends.paste(frames[0], (0, 0))
    ends.paste(frames[-1], (0, frames[0].height))
    palette = ends.quantize(256, dither=Image.Dither.NONE)
    shown = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    shown[0].save(
        buffer, "GIF", save_all=True, append_images=shown[1:], duration=durations, loop=0,
        optimize=False,
    )  # fmt: skip
    return buffer.getvalue()


def _draw_panel(scene: Image.Image, panel: DenoisingPanel, size: tuple[int, int]) -> Image.Image:
    """Draws title, scene with boxes, and summary."""
    card = Image.new("RGB", (size[0], HEAD + size[1] + FOOT), WHITE)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, size[0] - 1, HEAD - 1), TEXT_COLOR if panel.final else NEUTRAL_COLOR)
    face = font(17, bold=True)
    text = shorten(panel.title, face, size[0] - 16)
    draw.text((8, HEAD / 2), text, WHITE, face, anchor="lm")
    image = scene.resize(size, Image.Resampling.LANCZOS)
    boxes = panel.boxes * (np.array(size * 2) / (scene.size * 2))
    image = _with_faint_boxes(image, boxes, panel)
    for row in list(panel.persons)[::-1]:
        if row != panel.best:
            draw_box(image, boxes[row], PERSON_COLOR, width=2)
    if panel.best is not None:
        draw_box(image, boxes[panel.best], BEST_COLOR, width=4)
    _draw_labels(image, boxes, panel)
    card.paste(image, (0, HEAD))
    color = TEXT_COLOR if panel.best is None else BEST_COLOR
    face = font(16, bold=panel.best is not None)
    text = shorten(panel.note, face, size[0] - 16)
    draw.text((8, HEAD + size[1] + FOOT / 2), text, color, face, anchor="lm")
    return card


def _with_faint_boxes(image: Image.Image, boxes: np.ndarray, panel: DenoisingPanel) -> Image.Image:
    """Draws thin lines for the rows that are not detections, more opaque for higher scores."""
    layer = Image.new("RGBA", image.size, (*FAINT_COLOR, 0))
    draw = ImageDraw.Draw(layer)
    others = np.setdiff1d(np.arange(len(boxes)), np.asarray(panel.persons, int))
    strength = np.full(len(boxes), 0.6) if panel.scores is None else 0.15 + 0.35 * panel.scores
    for row in sorted(others, key=lambda row: strength[row]):
        x1, y1, x2, y2 = (round(float(v)) for v in boxes[row])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=(
            *FAINT_COLOR, round(255 * float(strength[row])),
        ))  # fmt: skip
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _draw_labels(image: Image.Image, boxes: np.ndarray, panel: DenoisingPanel) -> None:
    """Writes D, and R below it, at each detection that has room for it."""
    scores = panel.scores
    if scores is None:  # no detections
        return
    draw = ImageDraw.Draw(image)
    taken: list[tuple[int, int, int, int]] = []
    for row in sorted(panel.persons, key=lambda row: row != panel.best):  # the best match first
        lines = [f"D {scores[row]:.2f}"]
        if panel.sims is not None:
            lines.append(f"R {panel.sims[row]:.2f}".replace("-", "\N{MINUS SIGN}"))
        width = max(round(font(LABEL_SIZE, bold=True).getlength(line)) for line in lines) + 7
        height = len(lines) * (LABEL_SIZE + 4) + 3
        corners = _label_places(boxes[row], (width, height), image.size)
        free = [c for c in corners if not any(_overlap(c, t) for t in taken)]
        if not free and row != panel.best:
            continue
        left, top, right, bottom = corner = (free or corners)[0]
        taken.append(corner)
        draw.rectangle(corner, BEST_COLOR if row == panel.best else PERSON_COLOR)
        for index, line in enumerate(lines):
            middle = (left + right) / 2, top + 2 + (index + 0.5) * (LABEL_SIZE + 4)
            draw.text(middle, line, WHITE, font(LABEL_SIZE, bold=True), anchor="mm")


def _label_places(
    box: np.ndarray, size: tuple[int, int], limits: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """Returns possible label corners at a box, best first: above, below, inside."""
    x1, y1, x2, y2 = box
    middle = (x1 + x2 - size[0]) / 2
    places = [(x, y) for y in (y1 - size[1] - 3, y2 + 3) for x in (middle, x1, x2 - size[0])]
    places += [(middle, y1 + 4), (middle, y2 - size[1] - 4), (middle, (y1 + y2 - size[1]) / 2)]
    corners = []
    for x, y in places:
        left = round(max(0, min(x, limits[0] - size[0] - 1)))
        top = round(max(0, min(y, limits[1] - size[1] - 1)))
        corners.append((left, top, left + size[0], top + size[1]))
    return corners


def _overlap(a: Sequence[int], b: Sequence[int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _draw_query(sheet: Image.Image, area: Area, query: StripQuery) -> None:
    draw = ImageDraw.Draw(sheet)
    left, top, width, height = area
    draw.rectangle((left, top, left + width - 1, top + height - 1), WHITE, QUERY_COLOR, 3)
    draw.rectangle((left, top, left + width - 1, top + HEAD - 1), QUERY_COLOR)
    draw.text((left + 8, top + HEAD / 2), "Query", WHITE, font(17, bold=True), anchor="lm")
    crop = crop_person(to_image(query.image), query.box)
    paste_fitted(sheet, crop, (left + 3, top + HEAD, width - 6, height - HEAD - 3))


def _draw_progress(frame: Image.Image, area: Area, index: int, count: int) -> None:
    left, top, width, height = area
    draw = ImageDraw.Draw(frame)
    for part in range(count):
        ends = [left + round(width * (part + more) / count) for more in (0, 1)]
        color = NEUTRAL_COLOR if part <= index else (214, 214, 220)
        draw.rectangle((ends[0], top, ends[1] - 4, top + height), color)


def _draw_legend(
    sheet: Image.Image, left_top: tuple[int, int], with_query: bool, in_two_rows: bool = False
) -> None:
    """Draws a sample of each kind of box with its meaning."""
    draw = ImageDraw.Draw(sheet)
    x, y = left_top
    entries = [
        (FAINT_COLOR, 1, "other proposals"),
        (PERSON_COLOR, 2, "person (D: detection score)"),
    ]
    if with_query:
        entries.append((BEST_COLOR, 4, "best match (R: similarity to the query)"))
    for index, (color, line, text) in enumerate(entries):
        if in_two_rows and index == 2:
            x, y = left_top[0], y + 30
        sample = Image.new("RGB", (34, 24), (128, 132, 128))
        if color == FAINT_COLOR:
            for shift in (0, 4):
                corners = (5 + shift, 3 + shift, 24 + shift, 15 + shift)
                ImageDraw.Draw(sample).rectangle(corners, outline=color, width=line)
        else:
            draw_box(sample, (6, 3, 27, 20), color, width=line)
        sheet.paste(sample, (x, y))
        face = font(16)
        draw.text((x + 42, y + 12), text, TEXT_COLOR, face, anchor="lm")
        x += 42 + round(face.getlength(text)) + 28
