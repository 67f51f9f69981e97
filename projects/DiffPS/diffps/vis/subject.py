# SPDX-License-Identifier: Apache-2.0
"""The image that figures are drawn of, as people see it and as the model is given it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode
from PIL import Image

from person_search.data import build_mapper
from person_search.vis.drawing import QUERY_COLOR, draw_box, fitted_size, to_image

# What a box is drawn with, by where it comes from.
BOX_COLORS = {"given": QUERY_COLOR, "annotated": (0, 158, 105), "detected": (24, 150, 165)}


@dataclass(frozen=True)
class Subject:
    """An image with boxes of the people in question."""

    name: str
    """For titles."""
    picture: np.ndarray
    """(H, W, 3) uint8 RGB."""
    item: dict
    """Input of the model, made as in testing; ``queries`` are the boxes in its frame."""
    boxes: np.ndarray
    """(n, 4) XYXY in pixels of the image."""
    boxes_from: str
    """Key of ``BOX_COLORS``."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return tuple(self.item["image"].shape[1:])

    @property
    def input_boxes(self) -> Boxes:
        """The boxes in pixels of the model's input."""
        return self.item["queries"].pred_boxes

    def scaled(self, width: int, height: int) -> Image.Image:
        """The image, fitted into a size."""
        picture = to_image(self.picture)
        return picture.resize(fitted_size(picture.size, (width, height)), Image.Resampling.LANCZOS)

    def with_boxes(self, picture: Image.Image, width: int = 2) -> Image.Image:
        """A copy of an image of the whole image with the boxes in it."""
        picture = picture.copy()
        height, breadth = self.picture.shape[:2]
        scale = np.array([picture.width / breadth, picture.height / height] * 2)
        for box in self.boxes:
            draw_box(picture, box * scale, BOX_COLORS[self.boxes_from], width)
        return picture


def make_subject(
    cfg: CfgNode,
    path: str | os.PathLike,
    picture: np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray = (),
    boxes_from: str = "given",
) -> Subject:
    """Runs the mapper of a config, as testing does.

    Args:
        path: of the image, which the mapper reads itself. image: its RGB pixels.
        boxes: XYXY in pixels of the image, each with an area inside it.
    """
    if boxes_from not in BOX_COLORS:
        raise ValueError(f"boxes_from is {boxes_from!r}; allowed: {', '.join(BOX_COLORS)}")
    height, width = picture.shape[:2]
    rows = np.asarray(boxes, np.float64).reshape(-1, 4)
    record = {
        "file_name": os.fspath(path),
        "image_id": 0,
        "height": height,
        "width": width,
        "cam_id": None,
        "annotations": [],
        "queries": [
            {"query_id": i, "bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS}
            for i, box in enumerate(rows)
        ],
    }
    item = build_mapper(cfg, is_train=False)(record)
    if item is None:
        raise ValueError(
            f"the mapper {cfg.DATALOADER.MAPPER} leaves out the image {os.fspath(path)}; one for "
            "testing has to map every image"
        )
    return Subject(os.path.basename(path), picture, item, rows, boxes_from)
