# SPDX-License-Identifier: Apache-2.0
"""Pooling of the features of boxes from a feature pyramid.

Shape shorthand: N images, M boxes of all images, L levels, C channels, P output side.
"""

import math

import torch
from detectron2._lite import NotInLiteError, absence_message
from detectron2.layers import ROIAlign, cat, nonzero_tuple
from detectron2.structures import Boxes
from torch import nn
from torchvision.ops import RoIPool


def assign_boxes_to_levels(
    box_lists: list[Boxes],
    min_level: int,
    max_level: int,
    canonical_box_size: int,
    canonical_level: int,
) -> torch.Tensor:
    """Assigns each box to a pyramid level (FPN paper, Eq. 1).

    Args:
        box_lists: Boxes of each image.
        min_level: Finest level, as log2 of the stride.
        max_level: Coarsest level, as log2 of the stride.
        canonical_box_size: Side length in pixels of a box at ``canonical_level``.
        canonical_level: Level of a box of size ``canonical_box_size``.

    Returns:
        (M,) int64 levels, counted from ``min_level``.
    """
    sides = torch.sqrt(cat([boxes.area() for boxes in box_lists]))
    # the small constant avoids log(0)
    level = torch.floor(canonical_level + torch.log2(sides / canonical_box_size + 1e-8))
    return torch.clamp(level, min=min_level, max=max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> torch.Tensor:
    """Converts the boxes of each image to (M, 5) rows (index of the image, x1, y1, x2, y2)."""
    rows: list[torch.Tensor] = []
    for index, boxes in enumerate(box_lists):
        box = boxes.tensor
        # full_like of a slice keeps the length dynamic in a trace
        rows.append(torch.cat([torch.full_like(box[:, :1], float(index)), box], dim=1))
    return cat(rows, dim=0)


def _level_of_scale(scale: float, name: str) -> int:
    level = -math.log2(scale)
    assert math.isclose(level, int(level)), f"{name} scale {scale} is not a power of 2"
    return int(level)


def _make_level_pooler(
    pooler_type: str, output_size: tuple[int, int], scale: float, sampling_ratio: int
) -> nn.Module:
    if pooler_type in ("ROIAlign", "ROIAlignV2"):
        return ROIAlign(
            output_size,
            spatial_scale=scale,
            sampling_ratio=sampling_ratio,
            aligned=pooler_type == "ROIAlignV2",
        )
    if pooler_type == "ROIPool":
        return RoIPool(output_size, spatial_scale=scale)
    if pooler_type == "ROIAlignRotated":
        raise NotInLiteError(absence_message("POOLER_TYPE 'ROIAlignRotated' (rotated boxes)"))
    raise ValueError(
        f"unknown pooler type: {pooler_type} (cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE); available: "
        "ROIAlign, ROIAlignV2, ROIPool"
    )


class ROIPooler(nn.Module):
    """Pools the features of boxes, each from the pyramid level for its size.

    Args:
        output_size: P, or (height, width).
        scales: 1 / stride of each level, finest first; contiguous powers of 2.
        sampling_ratio: Samples per output cell and axis of ROIAlign; 0 adapts to the box.
        pooler_type: "ROIAlign", "ROIAlignV2" (aligned) or "ROIPool".
        canonical_box_size: See ``assign_boxes_to_levels``.
        canonical_level: See ``assign_boxes_to_levels``.
    """

    def __init__(
        self,
        output_size,
        scales,
        sampling_ratio,
        pooler_type,
        canonical_box_size=224,
        canonical_level=4,
    ):
        super().__init__()
        if isinstance(output_size, int):
            output_size = (output_size, output_size)
        height, width = output_size
        assert {type(height), type(width)} == {int}, f"output_size must be integers: {output_size}"
        self.output_size = (height, width)

        self.level_poolers = nn.ModuleList(
            _make_level_pooler(pooler_type, self.output_size, scale, sampling_ratio)
            for scale in scales
        )
        self.min_level = _level_of_scale(scales[0], "first")
        self.max_level = _level_of_scale(scales[-1], "last")
        assert len(scales) == self.max_level - self.min_level + 1, (
            f"scales {scales} are not contiguous powers of 2"
        )
        assert self.min_level >= 0, f"scale {scales[0]} is greater than 1"
        self.canonical_level = canonical_level
        assert canonical_box_size > 0
        self.canonical_box_size = canonical_box_size

    def forward(self, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
        """Pools boxes.

        Args:
            x: For each level, (N, C, H_l, W_l) features.
            box_lists: Boxes of each image, in pixels of the input image.

        Returns:
            (M, C, P, P) features.
        """
        num_levels = len(self.level_poolers)
        assert len(x) == num_levels, "need one feature map per pooler level"
        assert len(box_lists) == x[0].size(0), "need one set of boxes per image"

        channels = x[0].shape[1]
        height, width = self.output_size
        if len(box_lists) == 0:
            return torch.zeros((0, channels, height, width), dtype=x[0].dtype, device=x[0].device)
        rois = convert_boxes_to_pooler_format(box_lists)
        if num_levels == 1:
            return self.level_poolers[0](x[0], rois)

        level_of_roi = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        pooled = torch.zeros(
            (rois.shape[0], channels, height, width), dtype=x[0].dtype, device=x[0].device
        )
        for level, pooler in enumerate(self.level_poolers):
            rows = nonzero_tuple(level_of_roi == level)[0]
            # index_put_, because a traced assignment of a single row would make its shape constant
            pooled.index_put_((rows,), pooler(x[level], rois[rows]))
        return pooled
