# SPDX-License-Identifier: Apache-2.0
"""A teacher as the re-ID network of another method: the upper bound of what it can teach."""

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from person_search.modeling import CROP_EMBEDDER_REGISTRY
from psdiff.teachers.crops import crop_image
from psdiff.teachers.registry import build_teacher


@CROP_EMBEDDER_REGISTRY.register()
class PSDiffTeacher(nn.Module):
    """The teacher of ``MODEL.PSDIFF.TEACHER`` on crops of images.

    Args:
        cfg: Config with ``MODEL.PSDIFF.TEACHER``.
        weights: File of train_teacher.py, or "" for random weights.
    """

    def __init__(self, cfg: CfgNode, weights: str) -> None:
        super().__init__()
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS = ""  # all weights come from the one file
        self.net = build_teacher(cfg)
        self.embed_dim = cfg.MODEL.REID.EMBED_DIM
        if weights:
            self.net.load(weights)

    def forward(self, images: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Returns unit vectors (n, D) for the boxes of all images, in their order."""
        size = self.net.crop_size
        crops = [crop_image(*pair, size) for pair in zip(images, boxes, strict=True)]
        return self.net(torch.cat(crops).to(self.net.pixel_mean.device))
