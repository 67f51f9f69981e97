# SPDX-License-Identifier: Apache-2.0
"""Output layers of Fast R-CNN: scores and box deltas of each proposal, losses and inference.

Shape shorthand:
    N images, Ri proposals of image i, R proposals of all images, K foreground classes, B parameters
    of a box (4).

Naming convention:
    scores: (R, K + 1) classification logits; the last column is background.
    deltas: (R, K * B) class specific or (R, B) class agnostic deltas; see `Box2BoxTransform`.
    probs: softmax or sigmoid of the scores.
    gt_classes: 0 to K - 1 foreground, K background, negative ignored.
"""

import math
from collections.abc import Callable

import torch
from detectron2._lite import NotInLiteError, absence_message
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, cat, cross_entropy, nonzero_tuple
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F

from ..box_regression import Box2BoxTransform, _dense_box_regression_loss


def fast_rcnn_inference(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Selects the detections of each image with a score threshold and NMS.

    Args:
        boxes: For each image, (Ri, K * B) boxes, or (Ri, B) if class agnostic.
        scores: For each image, (Ri, K + 1) probabilities.
        image_shapes: (height, width) of each image.
        score_thresh: Score that a detection must exceed.
        nms_thresh: IoU threshold of NMS within each class.
        topk_per_image: Maximum number of detections; negative for all.

    Returns:
        For each image, Instances with `pred_boxes`, `scores` and `pred_classes`, highest score
        first; and for each image, the index of the proposal of each detection.
    """
    results = [
        fast_rcnn_inference_single_image(b, s, shape, score_thresh, nms_thresh, topk_per_image)
        for b, s, shape in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in results], [kept for _, kept in results]


def fast_rcnn_inference_single_image(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """Selects the detections of one image; see ``fast_rcnn_inference``."""
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    if not finite.all():
        boxes, scores = boxes[finite], scores[finite]

    foreground_scores = scores[:, :-1]
    box_columns = boxes.shape[1] // 4
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_shape)
    boxes = clipped.tensor.view(-1, box_columns, 4)

    # every (proposal, class) pair above the threshold is a candidate
    confident = foreground_scores > score_thresh
    candidates = confident.nonzero()
    candidate_scores = foreground_scores[confident]
    candidate_boxes = boxes[candidates[:, 0], 0] if box_columns == 1 else boxes[confident]

    keep = batched_nms(candidate_boxes, candidate_scores, candidates[:, 1], nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    result = Instances(image_shape)
    result.pred_boxes = Boxes(candidate_boxes[keep])
    result.scores = candidate_scores[keep]
    result.pred_classes = candidates[keep, 1]
    return result, candidates[keep, 0]


def _log_classification_stats(pred_logits, gt_classes, prefix="fast_rcnn"):
    """Records the accuracy, the foreground accuracy and the false negative rate of a batch.

    Args:
        pred_logits: (R, K + 1) logits.
        gt_classes: (R,) classes.
        prefix: Prefix of the names of the scalars.
    """
    num_proposals = gt_classes.numel()
    if num_proposals == 0:
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    storage = get_event_storage()
    accuracy = (predicted == gt_classes).sum().item() / num_proposals
    storage.put_scalar(f"{prefix}/cls_accuracy", accuracy)

    is_fg = (gt_classes >= 0) & (gt_classes < background)
    num_fg = is_fg.sum().item()
    if num_fg > 0:
        predicted, target = predicted[is_fg], gt_classes[is_fg]
        fg_accuracy = (predicted == target).sum().item() / num_fg
        missed = (predicted == background).sum().item() / num_fg
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", fg_accuracy)
        storage.put_scalar(f"{prefix}/false_negative", missed)


def _lengths(proposals: list[Instances]) -> list[int]:
    """Returns Ri of each image; len() would make a constant of it in a trace."""
    return [p.__len__() for p in proposals]


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers for the features of a box: ``cls_score`` and ``bbox_pred``.

    Args:
        input_shape: Shape of the features of a box, or number of channels.
        box2box_transform: Transform of the deltas.
        num_classes: Number of foreground classes K.
        test_score_thresh: See ``fast_rcnn_inference``.
        test_nms_thresh: See ``fast_rcnn_inference``.
        test_topk_per_image: See ``fast_rcnn_inference``.
        cls_agnostic_bbox_reg: Whether all classes share the deltas.
        smooth_l1_beta: See ``_dense_box_regression_loss``.
        box_reg_loss_type: See ``_dense_box_regression_loss``.
        loss_weight: Weight of both losses, or dict by name of the loss.
        use_fed_loss: Must be False; the federated loss is absent.
        use_sigmoid_ce: Whether to use a binary cross entropy per class instead of a softmax.
        get_fed_loss_cls_weights: Not used.
        fed_loss_num_classes: Not used.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable | None = None,
        fed_loss_num_classes: int = 50,
    ):
        super().__init__()
        if use_fed_loss:
            raise NotInLiteError(absence_message("cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True"))
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        self.num_classes = num_classes
        input_size = math.prod(
            side or 1 for side in (input_shape.channels, input_shape.height, input_shape.width)
        )
        self.cls_score = nn.Linear(input_size, num_classes + 1)
        box_dim = len(box2box_transform.weights)
        self.bbox_pred = nn.Linear(
            input_size, box_dim * (1 if cls_agnostic_bbox_reg else num_classes)
        )
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_sigmoid_ce = use_sigmoid_ce

    @classmethod
    def from_config(cls, cfg, input_shape):
        """Returns the arguments of ``__init__``."""
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
        }

    def forward(self, x):
        """Computes predictions.

        Args:
            x: (R, ...) features, which are flattened.

        Returns:
            (R, K + 1) scores, and (R, K * B) or (R, B) deltas.
        """
        x = torch.flatten(x, start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions, proposals):
        """Computes the losses.

        Args:
            predictions: Result of ``forward``.
            proposals: For each image, Instances with `proposal_boxes`, `gt_classes` and, if the
                image has ground truth, `gt_boxes`.

        Returns:
            Dict with "loss_cls" and "loss_box_reg", both normalized by the number of proposals.
        """
        scores, deltas = predictions
        gt_classes = cat([p.gt_classes for p in proposals], dim=0) if proposals else torch.empty(0)
        _log_classification_stats(scores, gt_classes)

        if proposals:
            proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals], dim=0)
            assert not proposal_boxes.requires_grad, "the proposals must be detached from the graph"
            # without ground truth, all proposals are background, which does not need targets
            targets = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals]
            gt_boxes = Boxes.cat(targets).tensor
        else:
            proposal_boxes = gt_boxes = torch.empty((0, 4), device=deltas.device)

        classification_loss = (
            self.sigmoid_cross_entropy_loss if self.use_sigmoid_ce else cross_entropy
        )
        losses = {
            "loss_cls": classification_loss(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def sigmoid_cross_entropy_loss(self, pred_class_logits, gt_classes):
        """Computes the binary cross entropy, summed over classes and averaged over proposals.

        Args:
            pred_class_logits: (R, K + 1) logits; the background column is not used.
            gt_classes: (R,) classes.
        """
        if pred_class_logits.numel() == 0:
            return pred_class_logits.new_zeros(())
        num_proposals, num_columns = pred_class_logits.shape
        targets = F.one_hot(gt_classes, num_columns)[:, :-1].to(pred_class_logits.dtype)
        loss = F.binary_cross_entropy_with_logits(
            pred_class_logits[:, :-1], targets, reduction="none"
        )
        return loss.sum() / num_proposals

    def box_reg_loss(self, proposal_boxes, gt_boxes, pred_deltas, gt_classes):
        """Computes the loss of the foreground proposals with the deltas of their class.

        The normalization by the number of all proposals gives each foreground proposal the same
        weight in every batch.

        Args:
            proposal_boxes: (R, B) boxes.
            gt_boxes: (R, B) matched ground truth boxes.
            pred_deltas: (R, K * B) or (R, B) deltas.
            gt_classes: (R,) classes.
        """
        box_dim = proposal_boxes.shape[1]
        fg = nonzero_tuple((gt_classes >= 0) & (gt_classes < self.num_classes))[0]
        if pred_deltas.shape[1] == box_dim:
            fg_deltas = pred_deltas[fg]
        else:
            fg_deltas = pred_deltas.view(-1, self.num_classes, box_dim)[fg, gt_classes[fg]]
        loss = _dense_box_regression_loss(
            [proposal_boxes[fg]],
            self.box2box_transform,
            [fg_deltas[None]],
            [gt_boxes[fg]],
            torch.ones((1, len(fg)), dtype=torch.bool, device=fg_deltas.device),
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(gt_classes.numel(), 1.0)

    def inference(self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]):
        """Returns the detections; see ``fast_rcnn_inference``.

        Args:
            predictions: Result of ``forward``.
            proposals: For each image, Instances with `proposal_boxes`.
        """
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            score_thresh=self.test_score_thresh,
            nms_thresh=self.test_nms_thresh,
            topk_per_image=self.test_topk_per_image,
        )

    def predict_boxes_for_gt_classes(self, predictions, proposals):
        """Returns the (Ri, B) boxes of each image, decoded with the deltas of the true class.

        Background proposals use the deltas of the last class.
        """
        if not len(proposals):
            return []
        _, deltas = predictions
        boxes = cat([p.proposal_boxes.tensor for p in proposals], dim=0)
        num_proposals, box_dim = boxes.shape
        decoded = self.box2box_transform.apply_deltas(deltas, boxes)
        columns = decoded.shape[1] // box_dim
        if columns > 1:
            gt_classes = torch.cat([p.gt_classes for p in proposals], dim=0)
            gt_classes = gt_classes.clamp(0, columns - 1)
            rows = torch.arange(num_proposals, device=decoded.device)
            decoded = decoded.view(num_proposals, columns, box_dim)[rows, gt_classes]
        return decoded.split(_lengths(proposals))

    def predict_boxes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ):
        """Returns the (Ri, K * B) or (Ri, B) decoded boxes of each image."""
        if not len(proposals):
            return []
        _, deltas = predictions
        boxes = cat([p.proposal_boxes.tensor for p in proposals], dim=0)
        decoded = self.box2box_transform.apply_deltas(deltas, boxes)
        return decoded.split(_lengths(proposals))

    def predict_probs(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ):
        """Returns the (Ri, K + 1) probabilities of each image."""
        scores, _ = predictions
        probs = scores.sigmoid() if self.use_sigmoid_ce else F.softmax(scores, dim=-1)
        return probs.split(_lengths(proposals))
