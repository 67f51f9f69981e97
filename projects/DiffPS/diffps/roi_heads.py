# SPDX-License-Identifier: Apache-2.0
"""RoI heads of DiffPS: detection in the proposals of DGRPN, then embedding of the detections.

Shape shorthand in this file:
    N: RoIs of all images. C: channels of the box head. D: length of the embedding.
Naming: class 0 is a person, class 1 background.
"""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from diffps.norm import RowNorm
from diffps.reid_head import ReIDHead
from diffps.sampling import RoISampler

MIN_SIDE = 0.01  # pixels that the sides of a detection must exceed


class PersonPredictor(FastRCNNOutputLayers):
    """Detectron2's predictor with normalized, class-agnostic box deltas.

    ``bbox_pred`` is a linear layer without bias and a batch norm over its four outputs.
    (N, C) -> scores (N, 2) and deltas (N, 4).

    Args:
        input_shape: Shape of the input.
        **kwargs: Arguments of :class:`detectron2.modeling.FastRCNNOutputLayers`.
    """

    bbox_pred: nn.Module

    @configurable
    def __init__(self, input_shape: ShapeSpec, **kwargs) -> None:
        super().__init__(input_shape, **kwargs)
        if self.bbox_pred.out_features != 4:
            raise ValueError(
                "DiffPS regresses one box per RoI: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG "
                "True."
            )
        self.bbox_pred = nn.Sequential(
            nn.Linear(self.bbox_pred.in_features, 4, bias=False), RowNorm(4)
        )


@ROI_HEADS_REGISTRY.register()
class DiffPSROIHeads(StandardROIHeads):
    """Detectron2's box branch with another sampler, followed by a re-ID branch.

    No gradient of re-ID reaches detection: boxes are passed as constants, and the two branches read
    different feature maps.

    Args:
        sampler: Selects the RoIs that train the box branch.
        reid_head: Re-ID branch.
        **kwargs: Arguments of :class:`detectron2.modeling.StandardROIHeads`.
    """

    @configurable
    def __init__(self, *, sampler: RoISampler, reid_head: ReIDHead, **kwargs) -> None:
        super().__init__(**kwargs)
        self.sampler, self.reid_head = sampler, reid_head

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec], text_vectors: Tensor | None):
        """Returns the arguments of the constructor."""
        heads = cfg.MODEL.ROI_HEADS
        args = super().from_config(cfg, input_shape)
        args["box_predictor"] = PersonPredictor(cfg, args["box_head"].output_shape)
        args["sampler"] = RoISampler(
            heads.IOU_THRESHOLDS[-1],
            heads.IOU_THRESHOLDS[0],
            heads.BATCH_SIZE_PER_IMAGE,
            heads.POSITIVE_FRACTION,
            cfg.MODEL.DIFFPS.HEAD.SAMPLER,
        )
        args["reid_head"] = ReIDHead(cfg, input_shape, text_vectors)
        return args

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Samples RoIs from the proposals and, if configured, the ground truth boxes."""
        boxes = [x.proposal_boxes for x in proposals]
        if self.proposal_append_gt:
            boxes = _join(boxes, [x.gt_boxes for x in targets])
        return self.sampler(boxes, targets)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Returns losses in training, otherwise detections with ``reid_feats``.

        Args:
            images: Input images.
            features: Maps of ``MODEL.ROI_HEADS.IN_FEATURES`` and ``reid``.
            proposals: Proposals of DGRPN for each image.
            targets: Ground truth with ``gt_boxes``, ``gt_classes`` and ``gt_pids``, in training.
        """
        if not self.training:
            detected, losses = super().forward(images, features, proposals)
            # boxes that clipping has reduced to almost nothing are not detections
            return [x[x.pred_boxes.nonempty(MIN_SIDE)] for x in detected], losses
        if targets is None:
            raise ValueError("DiffPSROIHeads needs the targets of all images in training")
        detected, losses = super().forward(images, features, proposals, targets)
        # re-ID trains on the refined RoIs (with TRAIN_ON_PRED_BOXES), all proposals and the ground
        # truth
        boxes = [Boxes(x.proposal_boxes.tensor.detach().clone()) for x in detected]
        for image_boxes, target in zip(boxes, targets, strict=True):
            image_boxes.clip(target.image_size)
        boxes = _join(boxes, [x.proposal_boxes for x in proposals], [x.gt_boxes for x in targets])
        return detected, losses | self.reid_head.losses(features, boxes, targets)

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Adds ``reid_feats`` (n, D) to instances with ``pred_boxes``."""
        reid_feats = self.reid_head.embed(features, [x.pred_boxes for x in instances])
        for image_instances, feats in zip(
            instances, reid_feats.split([len(x) for x in instances]), strict=True
        ):
            image_instances.reid_feats = feats
        return instances


def _join(*box_lists: list[Boxes]) -> list[Boxes]:
    """Concatenates the boxes of every image from several sources."""
    return [Boxes.cat(list(boxes)) for boxes in zip(*box_lists, strict=True)]
