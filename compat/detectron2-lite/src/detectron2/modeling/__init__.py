# SPDX-License-Identifier: Apache-2.0
"""Models and their parts; same names and module paths as in Detectron2."""

from detectron2._lite import absent

from .anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from .backbone import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    SwinTransformer,
    build_backbone,
    build_resnet_backbone,
    make_stage,
)
from .meta_arch import META_ARCH_REGISTRY, GeneralizedRCNN, ProposalNetwork, build_model
from .postprocessing import detector_postprocess
from .proposal_generator import (
    PROPOSAL_GENERATOR_REGISTRY,
    RPN_HEAD_REGISTRY,
    build_proposal_generator,
    build_rpn_head,
)
from .roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    ROIHeads,
    StandardROIHeads,
    build_box_head,
    build_roi_heads,
)

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "BACKBONE_REGISTRY",
    "Backbone",
    "FPN",
    "FastRCNNOutputLayers",
    "GeneralizedRCNN",
    "META_ARCH_REGISTRY",
    "PROPOSAL_GENERATOR_REGISTRY",
    "ProposalNetwork",
    "ROIHeads",
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "RPN_HEAD_REGISTRY",
    "ResNet",
    "ResNetBlockBase",
    "StandardROIHeads",
    "SwinTransformer",
    "build_anchor_generator",
    "build_backbone",
    "build_box_head",
    "build_model",
    "build_proposal_generator",
    "build_resnet_backbone",
    "build_roi_heads",
    "build_rpn_head",
    "detector_postprocess",
    "make_stage",
]

__getattr__ = absent(
    __name__,
    "BaseKeypointRCNNHead",
    "BaseMaskRCNNHead",
    "DatasetMapperTTA",
    "FCOS",
    "GeneralizedRCNNWithTTA",
    "MMDetBackbone",
    "MMDetDetector",
    "MViT",
    "PanopticFPN",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "RetinaNet",
    "SEM_SEG_HEADS_REGISTRY",
    "SemanticSegmentor",
    "SimpleFeaturePyramid",
    "ViT",
    "build_keypoint_head",
    "build_mask_head",
    "build_sem_seg_head",
    "get_vit_lr_decay_rate",
)
