# SPDX-License-Identifier: Apache-2.0
"""A teacher in a model: the re-ID network of another method, or a part of its own student."""

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from person_search.modeling import CROP_EMBEDDER_REGISTRY
from psdiff.config import check_range
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


class TeacherPart(PSDiffTeacher):
    """A frozen teacher beside the student, which contributes a share of each similarity.

    A training starts with the weights of ``TEACHER.WEIGHTS``; later, the model's file holds them.

    Args:
        cfg: Config with ``MODEL.PSDIFF.TEACHER``.

    Raises:
        ValueError: If ``FROZEN_SHARE`` is not between 0 and 1.
    """

    def __init__(self, cfg: CfgNode) -> None:
        share, weights = cfg.MODEL.PSDIFF.FROZEN_SHARE, cfg.MODEL.PSDIFF.TEACHER.WEIGHTS
        check_range("FROZEN_SHARE", share, 0, 1)
        super().__init__(cfg, "")
        self.share, self._weights = share, weights
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "TeacherPart":
        """Stays in eval mode."""
        return super().train(False)

    def load_initial_weights(self) -> None:
        """Reads ``TEACHER.WEIGHTS``.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If no file is named, or the file does not fit.
        """
        if not self._weights:
            raise ValueError(
                f"MODEL.PSDIFF.FROZEN_SHARE is {self.share}, but the teacher has no weights: set "
                "MODEL.PSDIFF.TEACHER.WEIGHTS to a file of train_teacher.py, or FROZEN_SHARE to 0."
            )
        self.net.load(self._weights)

    def append_to(self, reid_feats: Tensor, image: Tensor, boxes: Tensor) -> Tensor:
        """Returns unit vectors whose inner product is the weighted mean of both similarities.

        Args:
            reid_feats: Unit vectors (n, D) of the student.
            image: Image (3, H, W), 0 to 255.
            boxes: XYXY boxes (n, 4) in pixels of the image.
        """
        taught = self([image], [boxes])
        weighted = ((1 - self.share) ** 0.5 * reid_feats, self.share**0.5 * taught)
        return torch.cat(weighted, dim=1)
