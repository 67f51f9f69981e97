# SPDX-License-Identifier: Apache-2.0
"""A person search model without weights: the embedding of a box is its mean color."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

SIZE = (100, 80)  # width, height of painted images


class ColorModel(nn.Module):
    """Detects the left half of each image with score 0.9 and the right half with 0.6."""

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return self.inference(batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        found = detected_instances or [halves(x["image"]) for x in batched_inputs]
        for item, instances in zip(batched_inputs, found, strict=True):
            boxes = instances.pred_boxes.tensor
            feats = [mean_color(item["image"], box) for box in boxes.round().long().tolist()]
            instances.reid_feats = torch.stack(feats) if feats else boxes.new_zeros(0, 3)
        if not do_postprocess:
            return found
        return [
            {"instances": detector_postprocess(x, item["height"], item["width"])}
            for x, item in zip(found, batched_inputs, strict=True)
        ]


def halves(image: torch.Tensor) -> Instances:
    height, width = image.shape[1:]
    boxes = [[0.0, 0.0, width / 2, height], [width / 2, 0.0, width, height]]
    return Instances(
        (height, width), pred_boxes=Boxes(torch.tensor(boxes)), scores=torch.tensor([0.9, 0.6])
    )


def mean_color(image: torch.Tensor, box: list[int]) -> torch.Tensor:
    x1, y1, x2, y2 = box
    color = image[:, y1:y2, x1:x2].float().mean(dim=(1, 2))
    return nn.functional.normalize(color, dim=0)


def paint(path: Path, areas: Mapping[tuple[int, int, int, int], tuple[int, int, int]]) -> Path:
    """Writes a gray image with colored boxes."""
    image = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    for (x1, y1, x2, y2), color in areas.items():
        image[y1:y2, x1:x2] = color
    Image.fromarray(image).save(path)
    return path
