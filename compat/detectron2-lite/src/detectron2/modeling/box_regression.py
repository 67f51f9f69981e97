# SPDX-License-Identifier: Apache-2.0
"""Box encoding relative to reference boxes, decoding, and the box regression loss.

Shape shorthand: N boxes, K deltas per box (1, or one per class), R anchors of an image.
Boxes are (x1, y1, x2, y2).
"""

import math

import torch
from detectron2._lite import absent, absent_class
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.structures import Boxes
from fvcore.nn import giou_loss, smooth_l1_loss

Box2BoxTransformRotated = absent_class(__name__, "Box2BoxTransformRotated")
Box2BoxTransformLinear = absent_class(__name__, "Box2BoxTransformLinear")
__getattr__ = absent(__name__)

# Limits the size of decoded boxes: a box of 16 pixels grows to at most 1000 pixels.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)


def _size_and_center(boxes: torch.Tensor):
    """Returns (w, h, cx, cy), each (...), of (..., 4) boxes."""
    w = boxes[..., 2] - boxes[..., 0]
    h = boxes[..., 3] - boxes[..., 1]
    return w, h, boxes[..., 0] + 0.5 * w, boxes[..., 1] + 0.5 * h


# compiled, so that TorchScript accepts instances as attributes
@torch.jit.script
class Box2BoxTransform:
    """R-CNN's box transform.

    The four deltas (dx, dy, dw, dh) are

        dx = wx * (target_cx - src_cx) / src_w      dw = ww * log(target_w / src_w)
        dy = wy * (target_cy - src_cy) / src_h      dh = wh * log(target_h / src_h)

    Args:
        weights: (wx, wy, ww, wh). Fast R-CNN chooses them for about unit variance of the deltas.
        scale_clamp: Upper bound of dw / ww and dh / wh for decoding.
    """

    def __init__(
        self,
        weights: tuple[float, float, float, float],
        scale_clamp: float = _DEFAULT_SCALE_CLAMP,
    ):
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Computes the deltas that transform source boxes to target boxes.

        Args:
            src_boxes: (N, 4) source boxes with positive widths.
            target_boxes: (N, 4) target boxes.

        Returns:
            (N, 4) deltas.
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
        """Applies deltas to boxes.

        Args:
            deltas: (N, K*4) deltas.
            boxes: (N, 4) boxes.

        Returns:
            (N, K*4) boxes, at least in float32.
        """
        deltas = deltas.float()  # exp() overflows in half precision
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


def _dense_box_regression_loss(
    anchors: "list[Boxes | torch.Tensor]",
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: list[torch.Tensor],
    gt_boxes: list[torch.Tensor],
    fg_mask: torch.Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> torch.Tensor:
    """Computes the sum of the box regression losses of the foreground anchors.

    Args:
        anchors: For each level, (HWA, 4) anchors, the same for all images.
        box2box_transform: Transform of the deltas.
        pred_anchor_deltas: For each level, (images, HWA, 4) deltas.
        gt_boxes: For each image, (R, 4) ground truth boxes matched to the anchors.
        fg_mask: (images, R) bool mask of the foreground anchors.
        box_reg_loss_type: "smooth_l1" of deltas; "giou", "diou" or "ciou" of decoded boxes.
        smooth_l1_beta: Transition from quadratic to linear; 0 gives the L1 loss.

    Returns:
        The scalar loss.
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
            f"unknown box regression loss '{box_reg_loss_type}'; available: smooth_l1, "
            f"{', '.join(iou_losses)}"
        )
    boxes = torch.stack([box2box_transform.apply_deltas(d, all_anchors) for d in deltas])
    return iou_losses[box_reg_loss_type](
        boxes[fg_mask], torch.stack(gt_boxes)[fg_mask], reduction="sum"
    )
