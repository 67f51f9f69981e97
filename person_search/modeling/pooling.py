# SPDX-License-Identifier: Apache-2.0
"""RoIAlign as sums of rows of a channels-last feature map, for inference on a CPU.

Shape shorthand: B images, M boxes of all images, (H, W) cells of a map, C channels, P output side,
s samples per output cell and axis.

An output cell averages s x s bilinear samples, hence it is a weighted sum of 4 s^2 cells of the
map. ``embedding_bag`` computes such sums with contiguous reads of C channels, while RoIAlign on
channels-first maps reads each channel from another place. The outputs equal those of RoIAlign up to
rounding, in float32.
"""

import torch
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F


def levels_of(pooler: ROIPooler, box_lists: list[Boxes]) -> Tensor:
    """Returns the level (M,) from which a pooler reads each box of all images, FPN paper, Eq. 1."""
    if len(pooler.level_poolers) == 1:
        boxes = torch.cat([boxes.tensor for boxes in box_lists])
        return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    return assign_boxes_to_levels(
        box_lists,
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )


class ChannelsLastPooler(nn.Module):
    """Drop-in replacement of a Detectron2 ``ROIPooler`` of the type ROIAlign or ROIAlignV2.

    Args:
        pooler: Pooler with a fixed sampling ratio, see :func:`is_replaceable`.
    """

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Returns (M, C, P, P) float32 features, contiguous in the order (M, P, P, C).

        Args:
            x: Maps (B, C, H, W) of each level; channels-last maps are read without a copy.
            box_lists: Boxes of each image.
        """
        pooler, rois = self.pooler, convert_boxes_to_pooler_format(box_lists)
        levels = levels_of(pooler, box_lists)
        index, weight = self._taps(rois, levels, [maps.shape[-2:] for maps in x])
        side, channels = pooler.output_size[0], x[0].shape[1]
        pooled = rois.new_empty(len(rois), side * side, channels)
        for level, maps in enumerate(x):
            rows = (levels == level).nonzero().squeeze(1)
            if len(rows):
                cells = F.embedding_bag(
                    index[rows].view(-1, index.shape[-1]),
                    maps.permute(0, 2, 3, 1).reshape(-1, channels).float(),
                    mode="sum",
                    per_sample_weights=weight[rows].view(-1, index.shape[-1]),
                )
                pooled.index_copy_(0, rows, cells.view(len(rows), -1, channels))
        return pooled.view(-1, side, side, channels).permute(0, 3, 1, 2)

    def _taps(self, rois: Tensor, levels: Tensor, sizes: list[torch.Size]) -> tuple[Tensor, Tensor]:
        """Returns the cells of its map that each output cell reads, and their weights.

        Args:
            rois: Rows (M, 5): index of the image, x1, y1, x2, y2 in pixels.
            levels: Level of each box (M,).
            sizes: Size (H, W) of the maps of each level.

        Returns:
            Rows of the map (B, H, W) as (B H W,) and weights, both (M, P P, 4 s^2).
        """
        align, side = self.pooler.level_poolers[0], self.pooler.output_size[0]
        samples = align.sampling_ratio
        scales = rois.new_tensor([level.spatial_scale for level in self.pooler.level_poolers])
        size = torch.tensor(sizes, device=rois.device)[levels].flip(1)[..., None]  # (M, 2, 1)
        corners = rois[:, 1:] * scales[levels, None] - (0.5 if align.aligned else 0.0)
        start, end = corners.view(-1, 2, 2).unbind(1)
        extent = end - start if align.aligned else (end - start).clamp(min=1.0)
        step = (extent / side)[..., None, None]
        cell = torch.arange(side, device=rois.device)[:, None]
        sample = torch.arange(samples, device=rois.device) + 0.5
        # in the order of RoIAlign, for the same rounding
        position = (start[..., None, None] + cell * step + sample * step / samples).flatten(2)
        inside = (position >= -1) & (position <= size)
        position = torch.minimum(position.clamp(min=0), size - 1.0)
        low = position.floor()
        high_weight = position - low
        low_index = low.long()
        index = torch.stack([low_index, torch.minimum(low_index + 1, size - 1)], dim=-1)
        weight = torch.stack([1 - high_weight, high_weight], dim=-1) * (inside / samples)[..., None]
        shape = (len(rois), 2, side, 2 * samples)
        columns, lines = index.view(shape).unbind(1)
        column_weights, line_weights = weight.view(shape).unbind(1)
        lines = (lines + rois[:, :1, None].long() * size[:, 1:]) * size[:, :1]
        index = lines[:, :, None, :, None] + columns[:, None, :, None, :]
        weight = line_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        taps = 4 * samples**2
        index = index.reshape(len(rois), side * side, taps)
        return index, weight.reshape(len(rois), side * side, taps)


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module is a ``ROIPooler`` of RoIAlign layers with a fixed number of samples."""
    return (
        isinstance(module, ROIPooler)
        and module.output_size[0] == module.output_size[1]
        and all(
            getattr(level, "sampling_ratio", 0) > 0 and hasattr(level, "aligned")
            for level in module.level_poolers
        )
    )
