# SPDX-License-Identifier: Apache-2.0
"""Cascade R-CNN: box heads in a row, each trained on the boxes of the one before.

Shape shorthand: N images, Ri proposals of image i, R all of them, K foreground classes, S stages.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.autograd.function import Function

from ..box_regression import Box2BoxTransform
from ..matcher import Matcher
from ..poolers import ROIPooler
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from .roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads


class _ScaleGradient(Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx, features, factor):
        ctx.factor = factor
        return features

    @staticmethod
    def backward(ctx, gradient):
        return ctx.factor * gradient, None


@ROI_HEADS_REGISTRY.register()
class CascadeROIHeads(StandardROIHeads):
    """ROI heads of "Cascade R-CNN".

    Args:
        box_in_features, box_pooler: as for `StandardROIHeads`.
        box_heads, box_predictors: S each. The predictors are class agnostic.
        proposal_matchers: S; the first one labels the proposals that are sampled.
        kwargs: further arguments of `StandardROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_heads: list[nn.Module],
        box_predictors: list[nn.Module],
        proposal_matchers: list[Matcher],
        **kwargs,
    ):
        assert "proposal_matcher" not in kwargs, (
            "a cascade has proposal_matchers, one per stage, and no proposal_matcher"
        )
        kwargs["proposal_matcher"] = proposal_matchers[0]
        counts = [len(part) for part in (box_heads, box_predictors, proposal_matchers)]
        assert len(set(counts)) == 1, f"heads, predictors and matchers per stage: {counts}"
        super().__init__(
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            **kwargs,
        )
        self.num_cascade_stages = counts[0]
        self.proposal_matchers = proposal_matchers

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        del arguments["proposal_matcher"]  # there is one per stage instead
        return arguments

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        head, cascade = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_BOX_CASCADE_HEAD
        assert len(cascade.BBOX_REG_WEIGHTS) == len(cascade.IOUS)
        assert head.CLS_AGNOSTIC_BBOX_REG, (
            "a cascade needs cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
        )
        assert cascade.IOUS[0] == cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]

        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        channels = [input_shape[name].channels for name in in_features]
        assert len(set(channels)) == 1, channels
        resolution = head.POOLER_RESOLUTION
        pooled_shape = ShapeSpec(channels=channels[0], width=resolution, height=resolution)
        box_heads, box_predictors, matchers = [], [], []
        for iou, weights in zip(cascade.IOUS, cascade.BBOX_REG_WEIGHTS, strict=True):
            box_heads.append(build_box_head(cfg, pooled_shape))
            box_predictors.append(
                FastRCNNOutputLayers(
                    cfg,
                    box_heads[-1].output_shape,
                    box2box_transform=Box2BoxTransform(weights=weights),
                )
            )
            matchers.append(Matcher([iou], [0, 1], allow_low_quality_matches=False))
        return {
            "box_in_features": in_features,
            "box_pooler": ROIPooler(
                output_size=resolution,
                scales=tuple(1.0 / input_shape[name].stride for name in in_features),
                sampling_ratio=head.POOLER_SAMPLING_RATIO,
                pooler_type=head.POOLER_TYPE,
            ),
            "box_heads": box_heads,
            "box_predictors": box_predictors,
            "proposal_matchers": matchers,
        }

    def forward(self, images, features, proposals, targets=None):
        """See `ROIHeads.forward`."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        sampled = self.label_and_sample_proposals(proposals, targets)
        return sampled, self._forward_box(features, sampled, targets)

    def _forward_box(self, features, proposals, targets=None):
        """Run the stages.

        Args:
            features: by name, (N, C, H, W).
            proposals: per image, with `proposal_boxes` (and `gt_*` in training).
            targets: per image, in training.

        Returns:
            In training a dict with the losses of each stage, "loss_cls_stage0" and so on;
            otherwise detections: boxes of the last stage, mean probabilities of all.
        """
        features = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        stages = []
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                predictor, predictions, _ = stages[-1]
                # `predictions` and `proposals` here are still those of the stage before.
                boxes = predictor.predict_boxes(predictions, proposals)
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(features, proposals, stage)
            stages.append((self.box_predictor[stage], predictions, proposals))

        if self.training:
            return self._stage_losses(stages)
        probs = [
            predictor.predict_probs(predictions, stage_proposals)
            for predictor, predictions, stage_proposals in stages
        ]
        scores = [sum(per_stage) / len(stages) for per_stage in zip(*probs, strict=True)]
        predictor, predictions, proposals = stages[-1]
        detections, _ = fast_rcnn_inference(
            predictor.predict_boxes(predictions, proposals),
            scores,
            image_sizes,
            score_thresh=predictor.test_score_thresh,
            nms_thresh=predictor.test_nms_thresh,
            topk_per_image=predictor.test_topk_per_image,
        )
        return detections

    @staticmethod
    def _stage_losses(stages):
        losses = {}
        storage = get_event_storage()
        for stage, (predictor, predictions, proposals) in enumerate(stages):
            with storage.name_scope(f"stage{stage}"):
                stage_losses = predictor.losses(predictions, proposals)
            losses.update({f"{name}_stage{stage}": v for name, v in stage_losses.items()})
        return losses

    @torch.no_grad()
    def _match_and_label_boxes(self, proposals, stage, targets):
        """Set `gt_classes` and `gt_boxes` of all proposals of a later stage, in place.

        Nothing is sampled any more: every box counts. Without ground truth all are background.
        """
        num_fg, num_bg = [], []
        for image_proposals, image_targets in zip(proposals, targets, strict=True):
            quality = pairwise_iou(image_targets.gt_boxes, image_proposals.proposal_boxes)
            matches, labels = self.proposal_matchers[stage](quality)
            if len(image_targets) > 0:
                classes = image_targets.gt_classes[matches]
                classes[labels == 0] = self.num_classes
                gt_boxes = image_targets.gt_boxes[matches]
            else:
                classes = torch.full_like(matches, self.num_classes)
                gt_boxes = Boxes(image_targets.gt_boxes.tensor.new_zeros((len(image_proposals), 4)))
            image_proposals.gt_classes = classes
            image_proposals.gt_boxes = gt_boxes
            num_fg.append((labels == 1).sum().item())
            num_bg.append(labels.numel() - num_fg[-1])

        storage = get_event_storage()
        prefix = f"stage{stage}/roi_head"
        storage.put_scalar(f"{prefix}/num_fg_samples", sum(num_fg) / len(num_fg))
        storage.put_scalar(f"{prefix}/num_bg_samples", sum(num_bg) / len(num_bg))
        return proposals

    def _run_stage(self, features, proposals, stage):
        """Scores and deltas of the proposals by one stage."""
        pooled = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        # All stages send gradients to the features; together they shall weigh as one.
        pooled = _ScaleGradient.apply(pooled, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _create_proposals_from_boxes(self, boxes, image_sizes):
        """Per image an Instances with the detached, clipped `proposal_boxes`.

        In training boxes without area are dropped; at inference all stay, so that the scores of
        the stages can be averaged row by row.
        """
        proposals = []
        for image_boxes, image_size in zip(boxes, image_sizes, strict=True):
            image_boxes = Boxes(image_boxes.detach())
            image_boxes.clip(image_size)
            if self.training:
                image_boxes = image_boxes[image_boxes.nonempty()]
            proposals.append(Instances(image_size, proposal_boxes=image_boxes))
        return proposals
