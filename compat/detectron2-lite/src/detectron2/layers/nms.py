# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression."""

import torch
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
):
    """Suppresses within each group, never across groups.

    Args:
        boxes: (N, 4) boxes x0, y0, x1, y1.
        scores: (N,) scores.
        idxs: (N,) group of each box, for example its class or its feature map.
        iou_threshold: a box goes if it overlaps a better one of its group by more than this.

    Returns:
        (K,) int64 indices of the boxes kept, best score first.
    """
    assert boxes.shape[-1] == 4
    # float, because half precision cannot hold the offsets that separate the groups
    return box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
