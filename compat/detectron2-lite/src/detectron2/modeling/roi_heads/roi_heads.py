# SPDX-License-Identifier: Apache-2.0
"""ROI heads: sampling of proposals, pooling of their features, classification and box regression.

Shape shorthand: N images, Ri proposals of image i, K foreground classes, C channels, P pooled side.
Background has class K.
"""

import torch
from detectron2._lite import NotInLiteError, absence_message
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from fvcore.common.registry import Registry
from torch import nn

from ..backbone.resnet import BottleneckBlock, ResNet
from ..matcher import Matcher
from ..poolers import ROIPooler
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """
ROI heads, called as `obj(cfg, input_shape)` with a dict from feature name to `ShapeSpec`; they
return a `ROIHeads`.
"""


def build_roi_heads(cfg, input_shape):
    """Builds the ROI heads named by cfg.MODEL.ROI_HEADS.NAME."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Selects the proposals whose `gt_classes` is neither -1 nor background.

    Args:
        proposals: For each image, Instances with `gt_classes`.
        bg_label: Class of background.

    Returns:
        For each image, the foreground proposals; and for each image, their (Ri,) bool mask.
    """
    assert all(p.has("gt_classes") for p in proposals), "the proposals must have gt_classes"
    masks = [(p.gt_classes != -1) & (p.gt_classes != bg_label) for p in proposals]
    kept = [p[mask.nonzero().squeeze(1)] for p, mask in zip(proposals, masks, strict=True)]
    return kept, masks


def _refuse_masks_and_keypoints(cfg) -> None:
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if cfg.MODEL[key]:
            raise NotInLiteError(absence_message(f"cfg.MODEL.{key} = True"))


class ROIHeads(nn.Module):
    """Base class of ROI heads, which matches and samples proposals for training.

    Args:
        num_classes: Number of foreground classes K.
        batch_size_per_image: Number of proposals per image in the loss.
        positive_fraction: Maximum fraction of foreground proposals.
        proposal_matcher: Matcher of proposals with ground truth boxes.
        proposal_append_gt: Whether to append the ground truth boxes to the proposals.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes,
        batch_size_per_image,
        positive_fraction,
        proposal_matcher,
        proposal_append_gt=True,
    ):
        super().__init__()
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.num_classes = num_classes
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg):
        """Returns the arguments of ``__init__``."""
        heads = cfg.MODEL.ROI_HEADS
        return {
            "batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": heads.POSITIVE_FRACTION,
            "num_classes": heads.NUM_CLASSES,
            "proposal_append_gt": heads.PROPOSAL_APPEND_GT,
            "proposal_matcher": Matcher(
                heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality_matches=False
            ),
        }

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples proposals of one image and assigns classes.

        Args:
            matched_idxs: (Ri,) index of the ground truth matched with each proposal.
            matched_labels: (Ri,) labels -1, 0 or 1 of the matcher.
            gt_classes: Classes of the ground truth.

        Returns:
            Indices of the samples, foreground first, and their classes.
        """
        if gt_classes.numel() > 0:
            classes = gt_classes[matched_idxs]
            classes[matched_labels == 0] = self.num_classes
            classes[matched_labels == -1] = -1
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        chosen = torch.cat(
            subsample_labels(
                classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
            )
        )
        return chosen, classes[chosen]

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Samples the proposals for the loss and assigns their ground truth.

        Args:
            proposals: For each image, Instances with `proposal_boxes` and `objectness_logits`.
            targets: For each image, Instances with `gt_boxes`, `gt_classes` and optionally further
                `gt_*` fields.

        Returns:
            For each image, at most ``batch_size_per_image`` proposals with `gt_classes` and, if the
            image has ground truth, all `gt_*` fields of the matched targets, which are undefined
            for background.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled, num_fg, num_bg = [], [], []
        for image_proposals, image_targets in zip(proposals, targets, strict=True):
            quality = pairwise_iou(image_targets.gt_boxes, image_proposals.proposal_boxes)
            matches, labels = self.proposal_matcher(quality)
            chosen, classes = self._sample_proposals(matches, labels, image_targets.gt_classes)

            result = image_proposals[chosen]
            result.gt_classes = classes
            if len(image_targets) > 0:
                chosen_targets = matches[chosen]
                for name, value in image_targets.get_fields().items():
                    if name.startswith("gt_") and not result.has(name):
                        result.set(name, value[chosen_targets])
            background = (classes == self.num_classes).sum().item()
            num_bg.append(background)
            num_fg.append(classes.numel() - background)
            sampled.append(result)

        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", sum(num_fg) / len(num_fg))
        storage.put_scalar("roi_head/num_bg_samples", sum(num_bg) / len(num_bg))
        return sampled

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Computes losses or detections. Subclasses define it.

        Args:
            images: Input images.
            features: Dict from name to (N, C, H, W) features.
            proposals: For each image, Instances with `proposal_boxes`.
            targets: In training, Instances with `gt_boxes` and `gt_classes` for each image.

        Returns:
            In training, sampled proposals and a dict of losses; otherwise, detections and {}.
        """
        raise NotImplementedError


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """ROI heads of a "C4" model, which apply the last ResNet stage to every box.

    Args:
        in_features: List of one feature name.
        pooler: See ``ROIPooler``.
        res5: ResNet stage. The spatial mean of its output is the input of the predictor.
        box_predictor: See ``FastRCNNOutputLayers``.
        mask_head: Must be None; masks are absent.
        **kwargs: Arguments of ``ROIHeads``.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if mask_head is not None:
            raise NotInLiteError(absence_message("a mask_head"))
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = nn.Sequential(*res5) if isinstance(res5, (list, tuple)) else res5
        self.box_predictor = box_predictor
        self.mask_on = False

    @classmethod
    def from_config(cls, cfg, input_shape):
        """Returns the arguments of ``__init__``."""
        _refuse_masks_and_keypoints(cfg)
        (in_feature,) = in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        ret = super().from_config(cfg)
        ret["in_features"] = in_features
        ret["pooler"] = ROIPooler(
            output_size=cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
            scales=(1.0 / input_shape[in_feature].stride,),
            sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
            pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
        )
        ret["res5"], out_channels = cls._build_res5_block(cfg)
        ret["box_predictor"] = FastRCNNOutputLayers(
            cfg, ShapeSpec(channels=out_channels, height=1, width=1)
        )
        return ret

    @classmethod
    def _build_res5_block(cls, cfg):
        """Returns the stage and its number of output channels."""
        resnets = cfg.MODEL.RESNETS
        if resnets.DEFORM_ON_PER_STAGE[-1]:
            raise NotInLiteError(
                absence_message("cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE (deformable convolution)")
            )
        out_channels = resnets.RES2_OUT_CHANNELS * 8
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=out_channels // 2,
            bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 8,
            out_channels=out_channels,
            num_groups=resnets.NUM_GROUPS,
            norm=resnets.NORM,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), out_channels

    def _shared_roi_transform(self, features: list[torch.Tensor], boxes: list[Boxes]):
        return self.res5(self.pooler(features, boxes))

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ):
        """See ``ROIHeads.forward``."""
        if self.training:
            assert targets, "training the ROI heads needs targets"
            proposals = self.label_and_sample_proposals(proposals, targets)
        box_features = self._shared_roi_transform(
            [features[name] for name in self.in_features], [p.proposal_boxes for p in proposals]
        )
        predictions = self.box_predictor(box_features.mean(dim=[2, 3]))
        if self.training:
            return [], self.box_predictor.losses(predictions, proposals)
        detections, _ = self.box_predictor.inference(predictions, proposals)
        return self.forward_with_given_boxes(features, detections), {}

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Returns the instances unchanged: masks and keypoints are absent."""
        assert not self.training
        assert instances[0].has("pred_boxes") and instances[0].has("pred_classes")
        return instances


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """ROI heads that pool the features of each box from a pyramid.

    Args:
        box_in_features: Names of the feature maps.
        box_pooler: See ``ROIPooler``.
        box_head: See ``ROI_BOX_HEAD_REGISTRY``.
        box_predictor: See ``FastRCNNOutputLayers``.
        mask_in_features: Must be None; masks are absent.
        mask_pooler: Must be None.
        mask_head: Must be None.
        keypoint_in_features: Must be None; keypoints are absent.
        keypoint_pooler: Must be None.
        keypoint_head: Must be None.
        train_on_pred_boxes: Whether to replace the boxes of the proposals by predicted boxes after
            the loss.
        **kwargs: Arguments of ``ROIHeads``.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        keypoint_in_features: list[str] | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        refused = {
            "mask_in_features": mask_in_features,
            "mask_pooler": mask_pooler,
            "mask_head": mask_head,
            "keypoint_in_features": keypoint_in_features,
            "keypoint_pooler": keypoint_pooler,
            "keypoint_head": keypoint_head,
        }
        for name, value in refused.items():
            if value is not None:
                raise NotInLiteError(absence_message(f"StandardROIHeads' argument {name}"))
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_on = False
        self.keypoint_on = False
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg, input_shape):
        """Returns the arguments of ``__init__``."""
        _refuse_masks_and_keypoints(cfg)
        ret = super().from_config(cfg)
        ret["train_on_pred_boxes"] = cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
        ret.update(cls._init_box_head(cfg, input_shape))
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        """Returns the arguments of ``__init__`` for boxes."""
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = [input_shape[name].channels for name in in_features]
        assert len(set(channels)) == 1, channels
        box_pooler = ROIPooler(
            output_size=resolution,
            scales=tuple(1.0 / input_shape[name].stride for name in in_features),
            sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
            pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
        )
        box_head = build_box_head(
            cfg, ShapeSpec(channels=channels[0], height=resolution, width=resolution)
        )
        return {
            "box_in_features": in_features,
            "box_pooler": box_pooler,
            "box_head": box_head,
            "box_predictor": FastRCNNOutputLayers(cfg, box_head.output_shape),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See ``ROIHeads.forward``."""
        if self.training:
            assert targets, "training the ROI heads needs targets"
            sampled = self.label_and_sample_proposals(proposals, targets)
            return sampled, self._forward_box(features, sampled)
        detections = self._forward_box(features, proposals)
        return self.forward_with_given_boxes(features, detections), {}

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Predicts further outputs of given boxes, such as masks.

        It returns the instances unchanged, because masks and keypoints are absent. Subclasses may
        add outputs.

        Args:
            features: Dict from name to (N, C, H, W) features.
            instances: For each image, Instances with `pred_boxes` and `pred_classes`.

        Returns:
            The instances.
        """
        assert not self.training
        assert instances[0].has("pred_boxes") and instances[0].has("pred_classes")
        return instances

    def _forward_box(self, features: dict[str, torch.Tensor], proposals: list[Instances]):
        """Returns losses in training, otherwise the detections of each image."""
        box_features = self.box_pooler(
            [features[name] for name in self.box_in_features],
            [p.proposal_boxes for p in proposals],
        )
        predictions = self.box_predictor(self.box_head(box_features))
        del box_features
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return detections

        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
                for image_proposals, image_boxes in zip(proposals, boxes, strict=True):
                    image_proposals.proposal_boxes = Boxes(image_boxes)
        return losses
