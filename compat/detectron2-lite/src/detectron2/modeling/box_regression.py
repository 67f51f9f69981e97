# SPDX-License-Identifier: Apache-2.0
"""Encode boxes relative to reference boxes, decode them, and the regression loss on top.

Shape shorthand: N boxes, K deltas per box (1, or one per class), R all anchors of an image.
Boxes are (x1, y1, x2, y2).
"""

import math

import torch
from detectron2._lite import absent_class
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.structures import Boxes
from fvcore.nn import giou_loss, smooth_l1_loss

__all__ = ["Box2BoxTransform", "Box2BoxTransformLinear"]

# exp() of a size delta may scale a box by at most 1000 / 16: a box of 16 pixels, about the
# smallest that a stride 16 map sees, then just reaches a typical image side of 1000 pixels.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)


def _size_and_center(boxes: torch.Tensor):
    """(w, h, cx, cy), each (...), of (..., 4) boxes."""
    w = boxes[..., 2] - boxes[..., 0]
    h = boxes[..., 3] - boxes[..., 1]
    return w, h, boxes[..., 0] + 0.5 * w, boxes[..., 1] + 0.5 * h


# Compiled, so that TorchScript accepts instances of it as attributes; Python runs it as usual.
@torch.jit.script
class Box2BoxTransform:
    """R-CNN's box code: shift of the center in units of the box size, and log of the size ratio.

    The four deltas (dx, dy, dw, dh) are

        dx = wx * (target_cx - src_cx) / src_w      dw = ww * log(target_w / src_w)
        dy = wy * (target_cy - src_cy) / src_h      dh = wh * log(target_h / src_h)

    Args:
        weights: (wx, wy, ww, wh), chosen in Fast R-CNN so that the deltas have about unit
            variance.
        scale_clamp: upper bound of dw and dh (after division by the weights) when decoding.
    """

    def __init__(
        self,
        weights: tuple[float, float, float, float],
        scale_clamp: float = _DEFAULT_SCALE_CLAMP,
    ):
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Deltas that turn the source boxes into the targets.

        Args:
            src_boxes: (N, 4) with positive widths.
            target_boxes: (N, 4).

        Returns:
            (N, 4).
        """
        assert isinstance(src_boxes, torch.Tensor), "boxes must be a tensor"
        assert isinstance(target_boxes, torch.Tensor), "boxes must be a tensor"

        src_w, src_h, src_cx, src_cy = _size_and_center(src_boxes)
        target_w, target_h, target_cx, target_cy = _size_and_center(target_boxes)
        wx, wy, ww, wh = self.weights
        deltas = torch.stack(
            (
                wx * (target_cx - src_cx) / src_w,
                wy * (target_cy - src_cy) / src_h,
                ww * torch.log(target_w / src_w),
                wh * torch.log(target_h / src_h),
            ),
            dim=1,
        )
        assert (src_w > 0).all().item(), "source boxes are not valid: width <= 0"
        return deltas

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode, in float32 at least.

        Args:
            deltas: (N, K*4); box i is decoded K times.
            boxes: (N, 4).

        Returns:
            (N, K*4).
        """
        deltas = deltas.float()  # exp() overflows early in half precision
        boxes = boxes.to(deltas.dtype)
        w, h, cx, cy = _size_and_center(boxes[:, None])

        wx, wy, ww, wh = self.weights
        new_cx = deltas[:, 0::4] / wx * w + cx
        new_cy = deltas[:, 1::4] / wy * h + cy
        new_w = torch.exp(torch.clamp(deltas[:, 2::4] / ww, max=self.scale_clamp)) * w
        new_h = torch.exp(torch.clamp(deltas[:, 3::4] / wh, max=self.scale_clamp)) * h

        corners = (
            new_cx - 0.5 * new_w,
            new_cy - 0.5 * new_h,
            new_cx + 0.5 * new_w,
            new_cy + 0.5 * new_h,
        )
        return torch.stack(corners, dim=-1).reshape(deltas.shape)


class Box2BoxTransformLinear:
    """FCOS's box code: the distances from the source center to the four sides of the target.

    Args:
        normalize_by_size: measure the distances in units of the source box's width and height.
    """

    def __init__(self, normalize_by_size: bool = True):
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Distances (left, top, right, bottom), (N, 4), from two (N, 4) sets of boxes."""
        assert isinstance(src_boxes, torch.Tensor), type(src_boxes)
        assert isinstance(target_boxes, torch.Tensor), type(target_boxes)

        center = 0.5 * (src_boxes[:, :2] + src_boxes[:, 2:])
        deltas = torch.cat((center - target_boxes[:, :2], target_boxes[:, 2:] - center), dim=1)
        if self.normalize_by_size:
            deltas = deltas / (src_boxes[:, 2:] - src_boxes[:, :2]).repeat(1, 2)
        return deltas

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode (N, K*4) distances, negative ones taken as 0, around (N, 4) boxes."""
        deltas = torch.relu(deltas)
        boxes = boxes.to(deltas.dtype)
        per_box = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
        if self.normalize_by_size:
            per_box = per_box * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)[:, None]
        center = 0.5 * (boxes[:, None, :2] + boxes[:, None, 2:])
        corners = torch.cat((center - per_box[..., :2], center + per_box[..., 2:]), dim=-1)
        return corners.reshape(deltas.shape)


def _dense_box_regression_loss(
    anchors: "list[Boxes | torch.Tensor]",
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: list[torch.Tensor],
    gt_boxes: list[torch.Tensor],
    fg_mask: torch.Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> torch.Tensor:
    """Sum of the box losses of the foreground anchors, over levels and images.

    Args:
        anchors: per feature level, (HWA, 4); shared by all images. R of them in all.
        box2box_transform: the code of the deltas.
        pred_anchor_deltas: per level, (images, HWA, 4).
        gt_boxes: per image, (R, 4), the box matched to each anchor.
        fg_mask: (images, R) bool.
        box_reg_loss_type: "smooth_l1" on deltas; "giou", "diou" or "ciou" on decoded boxes.
        smooth_l1_beta: where smooth L1 goes from quadratic to linear; 0 is plain L1.

    Returns:
        A scalar.
    """
    all_anchors = (
        type(anchors[0]).cat(anchors).tensor if isinstance(anchors[0], Boxes) else cat(anchors)
    )
    deltas = cat(pred_anchor_deltas, dim=1)
    if box_reg_loss_type == "smooth_l1":
        targets = torch.stack([box2box_transform.get_deltas(all_anchors, gt) for gt in gt_boxes])
        return smooth_l1_loss(
            deltas[fg_mask], targets[fg_mask], beta=smooth_l1_beta, reduction="sum"
        )

    iou_losses = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
    if box_reg_loss_type not in iou_losses:
        raise ValueError(
            f"unknown box regression loss '{box_reg_loss_type}'; "
            f"known: smooth_l1, {', '.join(iou_losses)}"
        )
    boxes = torch.stack([box2box_transform.apply_deltas(d, all_anchors) for d in deltas])
    return iou_losses[box_reg_loss_type](
        boxes[fg_mask], torch.stack(gt_boxes)[fg_mask], reduction="sum"
    )


# Imported beside the plain transform by code that hardly uses it.
Box2BoxTransformRotated = absent_class(__name__, "Box2BoxTransformRotated")
