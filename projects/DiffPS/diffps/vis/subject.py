# SPDX-License-Identifier: Apache-2.0
"""The image to visualize, as read from the file and as the model receives it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode
from PIL import Image

from person_search.data import build_mapper
from person_search.vis.drawing import QUERY_COLOR, draw_box, fitted_size, to_image

# color of boxes by their source
BOX_COLORS = {"given": QUERY_COLOR, "annotated": (0, 158, 105), "detected": (24, 150, 165)}


@dataclass(frozen=True)
class Subject:
    """An image with boxes of persons.

    Attributes:
        name: Name for titles.
        image: (H, W, 3) uint8 RGB.
        item: Input of the model, mapped as in testing; ``queries`` are the boxes in its frame.
        boxes: (n, 4) XYXY in pixels of the image.
        boxes_from: Source of the boxes, a key of ``BOX_COLORS``.
    """

    name: str
    image: np.ndarray
    item: dict
    boxes: np.ndarray
    boxes_from: str

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return tuple(self.item["image"].shape[1:])

    @property
    def input_boxes(self) -> Boxes:
        """Boxes in pixels of the model's input."""
        return self.item["queries"].pred_boxes

    def scaled(self, width: int, height: int) -> Image.Image:
        """Returns the image fitted into a size."""
        image = to_image(self.image)
        return image.resize(fitted_size(image.size, (width, height)), Image.Resampling.LANCZOS)

    def with_boxes(self, image: Image.Image, width: int = 2) -> Image.Image:
        """Returns a copy of a scaled image with the boxes, drawn with lines of this width."""
        image = image.copy()
        height, breadth = self.image.shape[:2]
        scale = np.array([image.width / breadth, image.height / height] * 2)
        for box in self.boxes:
            draw_box(image, box * scale, BOX_COLORS[self.boxes_from], width)
        return image


def make_subject(
    cfg: CfgNode,
    path: str | os.PathLike,
    image: np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray = (),
    boxes_from: str = "given",
) -> Subject:
    """Maps an image as in testing.

    Args:
        cfg: The whole config.
        path: Image file, which the mapper reads itself.
        image: Its RGB pixels.
        boxes: XYXY in pixels of the image, each with an area inside it.
        boxes_from: Source of the boxes: ``given``, ``annotated`` or ``detected``.
    """
    if boxes_from not in BOX_COLORS:
        raise ValueError(f"boxes_from is {boxes_from!r}; allowed: {', '.join(BOX_COLORS)}")
    height, width = image.shape[:2]
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
            f"the mapper {cfg.DATALOADER.MAPPER} leaves out the image {os.fspath(path)}; a mapper "
            "must map every image in testing"
        )
    return Subject(os.path.basename(path), image, item, rows, boxes_from)
