# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression."""

import torch
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms  # noqa: F401


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
):
    """Performs non-maximum suppression within each group of boxes.

    Args:
        boxes: (N, 4) boxes x0, y0, x1, y1.
        scores: (N,) scores.
        idxs: (N,) group of each box, for example its class or its feature map.
        iou_threshold: IoU with a box of higher score above which a box is removed.

    Returns:
        (K,) int64 indices of the boxes kept, highest score first.
    """
    assert boxes.shape[-1] == 4
    # float, because half precision cannot hold the offsets that separate the groups
    return box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
