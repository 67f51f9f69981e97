# SPDX-License-Identifier: Apache-2.0
"""Memory that a training step of PSDiff needs on a GPU, calculated without one."""

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import roi_align

from person_search.utils.training_memory import TrainingMemory, simulate_training


class FinestLevelPooler(nn.Module):
    """Stands for Detectron2's pooler where boxes have no values to choose a level by.

    It makes the same tensors as if the finest level were chosen for all boxes, which is the
    costliest choice.
    """

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.output_size = pooler.output_size

    def forward(self, features: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """As ``ROIPooler``: (N, C, H, W) per level, Boxes per image -> (M, C, h, w)."""
        boxes = torch.cat([item.tensor for item in box_lists])
        shape = (len(boxes), features[0].shape[1], *self.output_size)
        result = features[0].new_zeros(shape)
        for level, feature in enumerate(features):
            count = 0 if level else len(boxes)
            rois = feature.new_zeros(count, 5)  # never garbage: the kernel trusts the image index
            pooled = roi_align(feature, rois, self.output_size, 1.0, 2, aligned=True)
            rows = torch.arange(count)
            result.index_put_((rows,), pooled.to(result.dtype))
        return result


def calculate_training_memory(
    model: nn.Module, num_images: int, image_size: tuple[int, int], *, amp: bool
) -> TrainingMemory:
    """What one training step of a PSDiff model holds at its worst moment.

    The losses are left out: their tensors have a few numbers per box and ground truth.

    Args:
        model: on the CPU and in training mode; it stays as it is.
        num_images: images of the batch.
        image_size: (h, w) of the largest, before padding.
        amp: with automatic mixed precision (float16).
    """
    divisor = model.backbone.size_divisibility or 1
    height, width = (-(-side // divisor) * divisor for side in image_size)
    channels, proposals = len(model.pixel_mean), model.num_proposals
    rows = num_images * model.train_draws

    def step(model: nn.Module) -> Tensor:
        features = model.backbone(torch.empty(num_images, channels, height, width))
        boxes = torch.empty(rows, proposals, 4)
        per_image = boxes.view(num_images, -1, 4)
        roi_feats = model.head.pool(features, per_image)
        roi_feats = roi_feats.view(rows, proposals, *roi_feats.shape[2:])
        signal = torch.empty(rows, proposals, model.embed_dim)
        t = torch.empty(rows, dtype=torch.int64)
        output = model.head.denoise(roi_feats, boxes, signal, t)
        return output.boxes.sum() + output.logits.sum() + output.reid_feats.sum()

    pooler = model.head.pooler
    try:
        model.head.pooler = FinestLevelPooler(pooler)
        return simulate_training(model, step, amp=amp)
    finally:
        model.head.pooler = pooler
