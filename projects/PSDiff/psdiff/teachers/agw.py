# SPDX-License-Identifier: Apache-2.0
"""AGW: non-local attention, generalized mean pooling, weighted regularized triplet.

Ye et al.: *Deep learning for person re-identification: a survey and outlook*, 2020. The three parts
extend the strong baseline with its neck, label smoothing and center loss.
"""

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psdiff.teachers.backbones import StagedBackbone, require_stages
from psdiff.teachers.layers import GeneralizedMeanPool, NonLocalBlock
from psdiff.teachers.losses import weighted_triplet
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet
from psdiff.teachers.s_reid import BaselineLoss


class AGWNet(TeacherNet):
    """Backbone with non-local blocks, generalized mean pooling, head."""

    neck_bias = False

    @configurable
    def __init__(self, *, backbone: StagedBackbone, non_local: Sequence[int], **kwargs) -> None:
        """Builds the non-local blocks.

        Args:
            backbone: Backbone made of stages.
            non_local: Number of last blocks of each stage that are followed by a non-local block.
            **kwargs: Arguments of :class:`TeacherNet`.
        """
        super().__init__(backbone=require_stages(backbone, "agw"), **kwargs)
        self.pool = GeneralizedMeanPool()
        self.non_local = nn.ModuleDict()
        counts = list(non_local)[: len(backbone.stages)]
        for index, count in enumerate(counts):
            blocks = len(backbone.stages[index])
            for block in range(max(blocks - count, 0), blocks):
                channels = backbone.stage_channels[index]
                self.non_local[f"{index}_{block}"] = NonLocalBlock(channels)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the arguments of ``__init__``."""
        return {**super().from_config(cfg), "non_local": cfg.MODEL.PSDIFF.TEACHER.NON_LOCAL}

    def describe(self, crops: Tensor) -> TeacherFeatures:
        """Computes all features of crops (n, 3, H, W)."""
        x = self.backbone.stem(self.normalized(crops))
        for index, stage in enumerate(self.backbone.stages):
            for block, layer in enumerate(stage):
                x = layer(x)
                key = f"{index}_{block}"
                x = self.non_local[key](x) if key in self.non_local else x
        pooled = self.pool(x)
        return TeacherFeatures(*self.head(pooled), whole=(pooled,))


class AGWLoss(BaselineLoss):
    """The loss of the strong baseline with the weighted regularized triplet."""

    def triplet(self, feats: Tensor, pids: Tensor) -> Tensor:
        """Computes the weighted regularized triplet loss."""
        return weighted_triplet(feats, pids)
