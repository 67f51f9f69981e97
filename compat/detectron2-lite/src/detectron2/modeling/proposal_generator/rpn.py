# SPDX-License-Identifier: Apache-2.0
"""Region Proposal Network.

Shape shorthand:
    N images, L feature levels, A anchors per cell, Hi x Wi cells of level i, B parameters of a box
    (4), R = sum of Hi * Wi * A, all anchors of an image.

Naming convention:
    objectness: logit of the probability that an anchor contains an object.
    deltas: box relative to an anchor; see `Box2BoxTransform`.
    gt_labels: 1 object, 0 background, -1 ignored.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from fvcore.common.registry import Registry
from torch import nn
from torch.nn import functional as F

from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """
RPN heads, called as `obj(cfg, input_shape)` with a list of `ShapeSpec`; they return an `nn.Module`
that maps L feature maps to L maps of objectness logits (N, A, Hi, Wi) and L maps of anchor deltas
(N, A * B, Hi, Wi).
"""


def build_rpn_head(cfg, input_shape):
    """Builds the RPN head named by cfg.MODEL.RPN.HEAD_NAME."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then a 1x1 convolution each for objectness and deltas.

    Args:
        in_channels: Number of channels of every feature map.
        num_anchors: Number of anchors A per cell.
        box_dim: Number of parameters B of a box.
        conv_dims: Output channels of the 3x3 convolutions; -1 keeps the number of channels.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        box_dim: int = 4,
        conv_dims: list[int] = (-1,),
    ):
        super().__init__()
        channels = in_channels
        convs = []
        for dim in conv_dims:
            out_channels = channels if dim == -1 else dim
            if out_channels <= 0:
                raise ValueError(
                    f"cfg.MODEL.RPN.CONV_DIMS must be positive or -1, got {out_channels}"
                )
            convs.append(self._get_rpn_conv(channels, out_channels))
            channels = out_channels
        # a single convolution has the name "conv" in checkpoints
        if len(convs) == 1:
            self.conv = convs[0]
        else:
            self.conv = nn.Sequential()
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)

        for conv in [module for module in self.modules() if isinstance(module, nn.Conv2d)]:
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def _get_rpn_conv(self, in_channels, out_channels):
        return Conv2d(in_channels, out_channels, kernel_size=3, padding=1, activation=nn.ReLU())

    @classmethod
    def from_config(cls, cfg, input_shape):
        """Returns the arguments of ``__init__``."""
        channels = {spec.channels for spec in input_shape}
        assert len(channels) == 1, f"the levels share a head, but have unequal channels: {channels}"
        anchor_generator = build_anchor_generator(cfg, input_shape)
        num_anchors = set(anchor_generator.num_anchors)
        assert len(num_anchors) == 1, (
            f"the levels share a head, but have unequal numbers of anchors: {num_anchors}"
        )
        return {
            "in_channels": channels.pop(),
            "num_anchors": num_anchors.pop(),
            "box_dim": anchor_generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[torch.Tensor]):
        """Predicts objectness and deltas.

        Args:
            features: For each level, (N, C, Hi, Wi) features.

        Returns:
            (N, A, Hi, Wi) logits of each level, and (N, A * B, Hi, Wi) deltas of each level.
        """
        logits: list[torch.Tensor] = []
        deltas: list[torch.Tensor] = []
        for feature in features:
            hidden = self.conv(feature)
            logits.append(self.objectness_logits(hidden))
            deltas.append(self.anchor_deltas(hidden))
        return logits, deltas


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Region Proposal Network (Ren et al., "Faster R-CNN", NeurIPS 2015).

    Args:
        in_features: Names of the L feature maps.
        head: See ``RPN_HEAD_REGISTRY``.
        anchor_generator: See ``ANCHOR_GENERATOR_REGISTRY``.
        anchor_matcher: Matcher of anchors with ground truth boxes.
        box2box_transform: Transform of the deltas.
        batch_size_per_image: Number of anchors per image in the loss.
        positive_fraction: Maximum fraction of foreground anchors.
        pre_nms_topk: (training, inference) values; see ``find_top_rpn_proposals``.
        post_nms_topk: (training, inference) values; see ``find_top_rpn_proposals``.
        nms_thresh: See ``find_top_rpn_proposals``.
        min_box_size: See ``find_top_rpn_proposals``.
        anchor_boundary_thresh: Number of pixels by which anchors may exceed the image without being
            ignored; a negative value disables the check.
        loss_weight: Weight of all losses, or dict by name of the loss.
        box_reg_loss_type: See ``_dense_box_regression_loss``.
        smooth_l1_beta: See ``_dense_box_regression_loss``.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[float, float],
        post_nms_topk: tuple[float, float],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ):
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        # keys: self.training
        self.pre_nms_topk = dict(zip((True, False), pre_nms_topk, strict=True))
        self.post_nms_topk = dict(zip((True, False), post_nms_topk, strict=True))
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Returns the arguments of ``__init__``."""
        rpn = cfg.MODEL.RPN
        in_features = rpn.IN_FEATURES
        shapes = [input_shape[name] for name in in_features]
        return {
            "in_features": in_features,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "nms_thresh": rpn.NMS_THRESH,
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "loss_weight": {
                "loss_rpn_cls": rpn.LOSS_WEIGHT,
                "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
            },
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(
                rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True
            ),
            "head": build_rpn_head(cfg, shapes),
        }

    def _subsample_labels(self, label):
        """Sets all labels except a random balanced subset to -1 in place, and returns them."""
        positive, negative = subsample_labels(
            label, self.batch_size_per_image, self.positive_fraction, 0
        )
        label.fill_(-1)
        label.scatter_(0, positive, 1)
        label.scatter_(0, negative, 0)
        return label

    @torch.jit.unused
    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Labels a random subset of the anchors for training.

        Args:
            anchors: Anchors of each level.
            gt_instances: For each image, Instances with `gt_boxes`.

        Returns:
            For each image, (R,) int8 labels, and (R, 4) matched ground truth boxes, which are
            defined for foreground.
        """
        all_anchors = Boxes.cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for instances in gt_instances:
            gt_boxes = instances.gt_boxes
            # on the CPU if many boxes do not fit into the GPU memory
            quality = retry_if_cuda_oom(pairwise_iou)(gt_boxes, all_anchors)
            matches, labels = retry_if_cuda_oom(self.anchor_matcher)(quality)
            labels = labels.to(device=gt_boxes.device)
            del quality
            if self.anchor_boundary_thresh >= 0:
                inside = all_anchors.inside_box(instances.image_size, self.anchor_boundary_thresh)
                labels[~inside] = -1
            gt_labels.append(self._subsample_labels(labels))
            matched_gt_boxes.append(
                gt_boxes[matches].tensor if len(gt_boxes) else torch.zeros_like(all_anchors.tensor)
            )
        return gt_labels, matched_gt_boxes

    @torch.jit.unused
    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Computes the losses.

        Args:
            anchors: Anchors of each level.
            pred_objectness_logits: For each level, (N, Hi*Wi*A) logits.
            gt_labels: For each image, labels from ``label_and_sample_anchors``.
            pred_anchor_deltas: For each level, (N, Hi*Wi*A, B) deltas.
            gt_boxes: For each image, boxes from ``label_and_sample_anchors``.

        Returns:
            Dict with "loss_rpn_cls" and "loss_rpn_loc", both normalized by N *
            ``batch_size_per_image``.
        """
        labels = torch.stack(gt_labels)
        num_images = len(gt_labels)
        positive = labels == 1
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", positive.sum().item() / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (labels == 0).sum().item() / num_images)

        loss_loc = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        sampled = labels >= 0
        loss_cls = F.binary_cross_entropy_with_logits(
            cat(pred_objectness_logits, dim=1)[sampled],
            labels[sampled].to(torch.float32),
            reduction="sum",
        )
        normalizer = self.batch_size_per_image * num_images
        losses = {"loss_rpn_cls": loss_cls / normalizer, "loss_rpn_loc": loss_loc / normalizer}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: list[Instances] | None = None,
    ):
        """Computes proposals and losses.

        Args:
            images: Images, of which only the sizes are used.
            features: Dict from name to (N, C, Hi, Wi) features.
            gt_instances: In training, Instances with `gt_boxes` for each image.

        Returns:
            For each image, Instances with `proposal_boxes` and `objectness_logits`; and the dict
            of losses, empty at inference.
        """
        feature_maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(feature_maps)
        logits, deltas = self.rpn_head(feature_maps)

        box_dim = self.anchor_generator.box_dim
        # in the order of the anchors
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [
            x.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas
        ]

        losses: dict[str, torch.Tensor] = {}
        if self.training:
            assert gt_instances is not None, "training the RPN needs gt_instances"
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decodes all predictions and selects the best, without gradient.

        Args:
            anchors: See ``losses``.
            pred_objectness_logits: See ``losses``.
            pred_anchor_deltas: See ``losses``.
            image_sizes: (height, width) of each image.

        Returns:
            The result of ``find_top_rpn_proposals``.
        """
        with torch.no_grad():
            return find_top_rpn_proposals(
                self._decode_proposals(anchors, pred_anchor_deltas),
                pred_objectness_logits,
                image_sizes,
                nms_thresh=self.nms_thresh,
                pre_nms_topk=self.pre_nms_topk[self.training],
                post_nms_topk=self.post_nms_topk[self.training],
                min_box_size=self.min_box_size,
                training=self.training,
            )

    def _decode_proposals(
        self, anchors: list[Boxes], pred_anchor_deltas: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Returns the (N, Hi*Wi*A, B) boxes of each level."""
        decoded: list[torch.Tensor] = []
        for level, deltas in enumerate(pred_anchor_deltas):
            num_images, box_dim = deltas.shape[0], deltas.shape[-1]
            repeated = anchors[level].tensor.repeat(num_images, 1)
            boxes = self.box2box_transform.apply_deltas(deltas.reshape(-1, box_dim), repeated)
            decoded.append(boxes.view(num_images, -1, box_dim))
        return decoded
