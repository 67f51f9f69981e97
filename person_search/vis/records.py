# SPDX-License-Identifier: Apache-2.0
"""A data set record as an image: boxes with their identities, and the queries.

Boxes are XYXY in pixels of the scene.
"""

import colorsys

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

from person_search.schema import UNLABELED_PID
from person_search.vis.drawing import (
    NEUTRAL_COLOR,
    QUERY_COLOR,
    TEXT_COLOR,
    WHITE,
    Color,
    draw_box,
    font,
    label,
    shorten,
    to_image,
)

HEAD = 40
"""Height of the text above the scene in pixels."""
LABEL_SIZE = 15


def color_of(person_id: int) -> Color:
    """Returns the color of an identity, never the blue of queries; gray for unlabeled persons."""
    if person_id == UNLABELED_PID:
        return NEUTRAL_COLOR
    # steps of the golden ratio in hue keep successive identities apart
    hue = (0.72 + 0.8 * (person_id * 0.618033988749895 % 1)) % 1
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.85, 0.72))
    return red, green, blue


def draw_record(image: np.ndarray, record: dict, long_side: int = 1000) -> Image.Image:
    """Draws the boxes of a record on its image.

    Args:
        image: (H, W, 3) uint8 RGB, the image of the record.
        record: Record, see docs/data_flow.md; ``queries`` may be missing.
        long_side: Longer side of the scaled scene in pixels.

    Returns:
        The scaled scene below a line that summarizes it. Solid boxes are labeled persons, dashed
        gray boxes are unlabeled persons, wide blue boxes are queries.
    """
    scene = to_image(image)
    scale = long_side / max(scene.size)
    width, height = (max(1, round(side * scale)) for side in scene.size)
    scene = scene.resize((width, height), Image.Resampling.LANCZOS)
    queries = record.get("queries", [])
    boxes = [(a["person_id"], _xyxy(a) * scale) for a in record["annotations"]]
    for query in queries:
        x1, y1, x2, y2 = _xyxy(query) * scale
        draw_box(scene, (x1 - 6, y1 - 6, x2 + 6, y2 + 6), QUERY_COLOR, width=5)
    for person_id, box in boxes:
        draw_box(scene, box.tolist(), color_of(person_id), dashed=person_id == UNLABELED_PID)
    draw = ImageDraw.Draw(scene)  # labels last, so that no box covers them
    for person_id, box in boxes:
        text = "unlabeled" if person_id == UNLABELED_PID else f"id {person_id}"
        _label_at(draw, text, box[0], box[1] - LABEL_SIZE - 7, color_of(person_id), scene.size)
    for query in queries:
        x, _, _, y = _xyxy(query) * scale
        _label_at(draw, f"query {query['query_id']}", x - 6, y + 7, QUERY_COLOR, scene.size)
    sheet = Image.new("RGB", (width, height + HEAD), WHITE)
    sheet.paste(scene, (0, HEAD))
    face = font(18)
    text = shorten(_summary(record), face, width - 16)
    ImageDraw.Draw(sheet).text((8, HEAD / 2), text, TEXT_COLOR, face, anchor="lm")
    return sheet


def _xyxy(entry: dict) -> np.ndarray:
    return np.array(BoxMode.convert(list(entry["bbox"]), entry["bbox_mode"], BoxMode.XYXY_ABS))


def _label_at(
    draw: ImageDraw.ImageDraw, text: str, x: float, y: float, color: Color, size: tuple[int, int]
) -> None:
    """Writes a label, moved into the image."""
    room = size[0] - font(LABEL_SIZE, bold=True).getlength(text) - 7, size[1] - LABEL_SIZE - 7
    place = max(0.0, min(x, room[0])), max(0.0, min(y, room[1]))
    label(draw, text, place, color, LABEL_SIZE)


def _summary(record: dict) -> str:
    pids = [a["person_id"] for a in record["annotations"]]
    unlabeled = pids.count(UNLABELED_PID)
    parts = [f"image {record['image_id']}"]
    if record.get("cam_id") is not None:
        parts.append(f"camera {record['cam_id']}")
    parts.append(f"{len(pids) - unlabeled} labeled and {unlabeled} unlabeled persons")
    if "queries" in record:
        parts.append(f"{len(record['queries'])} queries")
    return ", ".join(parts)
