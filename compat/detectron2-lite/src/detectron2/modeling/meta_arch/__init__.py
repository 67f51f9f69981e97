# SPDX-License-Identifier: Apache-2.0
"""Meta architectures: whole models, from a batch of image dicts to losses or results."""

from detectron2._lite import absent

from .build import META_ARCH_REGISTRY, build_model
from .rcnn import GeneralizedRCNN, ProposalNetwork

__all__ = [
    "GeneralizedRCNN",
    "META_ARCH_REGISTRY",
    "ProposalNetwork",
    "build_model",
]

__getattr__ = absent(
    __name__,
    "DenseDetector",
    "FCOS",
    "PanopticFPN",
    "RetinaNet",
    "SEM_SEG_HEADS_REGISTRY",
    "SemanticSegmentor",
    "build_sem_seg_head",
)
