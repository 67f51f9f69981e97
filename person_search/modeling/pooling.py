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
        level_of_roi = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
        if len(x) > 1:
            level_of_roi = assign_boxes_to_levels(
                box_lists,
                pooler.min_level,
                pooler.max_level,
                pooler.canonical_box_size,
                pooler.canonical_level,
            )
        height, width = pooler.output_size
        pooled = rois.new_empty(len(rois), height, width, x[0].shape[1])
        for level, (align, features) in enumerate(zip(pooler.level_poolers, x, strict=True)):
            rows = (level_of_roi == level).nonzero().squeeze(1)
            if len(rows):
                cells = align_rows(
                    features,
                    rois[rows],
                    pooler.output_size,
                    align.spatial_scale,
                    align.sampling_ratio,
                    align.aligned,
                )
                pooled.index_copy_(0, rows, cells)
        return pooled.permute(0, 3, 1, 2)


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module is a ``ROIPooler`` of RoIAlign layers with a fixed number of samples."""
    return isinstance(module, ROIPooler) and all(
        getattr(level, "sampling_ratio", 0) > 0 and hasattr(level, "aligned")
        for level in module.level_poolers
    )


def align_rows(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of one map.

    Args:
        features: Map (B, C, H, W).
        rois: Rows (M, 5): index of the image, x1, y1, x2, y2 in pixels.
        output_size: (P, P).
        spatial_scale: Cells per pixel.
        sampling_ratio: Samples s.
        aligned: Whether cell centers lie at half-integers, as in ROIAlignV2.

    Returns:
        Features (M, P, P, C).
    """
    channels, height, width = features.shape[1:]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels).float()
    start, end = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)).split(2, dim=1)
    extent = end - start if aligned else (end - start).clamp(min=1.0)
    columns, column_weights = _axis(start[:, 0], extent[:, 0], output_size[1], sampling_ratio, width)
    lines, line_weights = _axis(start[:, 1], extent[:, 1], output_size[0], sampling_ratio, height)
    lines = lines + rois[:, :1, None].long() * height
    index = lines[:, :, None, :, None] * width + columns[:, None, :, None, :]
    weight = line_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    taps = 4 * sampling_ratio**2
    cells = F.embedding_bag(
        index.view(-1, taps), table, mode="sum", per_sample_weights=weight.view(-1, taps)
    )
    return cells.view(len(rois), *output_size, channels)


def _axis(
    start: Tensor, extent: Tensor, cells: int, samples: int, size: int
) -> tuple[Tensor, Tensor]:
    """Returns the positions (M, P, 2 s) that the output cells read along an axis, and weights."""
    cell, sample = (
        torch.arange(n, device=start.device, dtype=start.dtype) for n in (cells, samples)
    )
    step = (extent / cells)[:, None, None]
    # in the order of RoIAlign, for the same rounding
    position = start[:, None, None] + cell[:, None] * step + (sample + 0.5) * step / samples
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.floor()
    high_weight = position - low
    low_index = low.long()
    index = torch.stack([low_index, (low_index + 1).clamp(max=size - 1)], dim=-1)
    weight = torch.stack([1 - high_weight, high_weight], dim=-1) * (inside / samples)[..., None]
    shape = (len(start), cells, 2 * samples)
    return index.view(shape), weight.view(shape)
