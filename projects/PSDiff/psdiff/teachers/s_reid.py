# SPDX-License-Identifier: Apache-2.0
"""S-ReID: the strong baseline with its batch norm neck.

Luo et al.: *A strong baseline and batch normalization neck for deep person re-identification*,
2019. Distances (triplet, center loss) are trained in front of the neck, classes behind it; the neck
does not shift and the classifier has no bias, so that classes lie around the origin.
"""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psdiff.teachers.losses import CenterLoss, TeacherLoss, batch_hard_triplet
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet


class SReIDNet(TeacherNet):
    """Backbone, mean over all positions, head."""

    neck_bias = False

    def describe(self, crops: Tensor) -> TeacherFeatures:
        pooled = self.backbone(self.normalized(crops)).mean(dim=(2, 3))
        return TeacherFeatures(*self.head(pooled), whole=(pooled,))


class BaselineLoss(TeacherLoss):
    """Softmax with label smoothing behind the neck; a triplet and the center loss before it.

    A subclass exchanges the triplet.
    """

    @configurable
    def __init__(
        self,
        *,
        num_pids: int,
        embed_dim: int,
        label_smoothing: float,
        margin: float,
        center_weight: float,
    ) -> None:
        """
        Args:
            num_pids: I. embed_dim: D.
            label_smoothing: share of a label that is spread evenly over all identities.
            margin: of the triplet loss. center_weight: of the center loss.
        """
        super().__init__()
        self.label_smoothing, self.margin = label_smoothing, margin
        self.center_weight = center_weight
        self.classifier = nn.Linear(embed_dim, num_pids, bias=False)
        self.center = CenterLoss(num_pids, embed_dim)
        nn.init.normal_(self.classifier.weight, std=0.001)

    @classmethod
    def from_config(cls, cfg: CfgNode, net: TeacherNet, pids: Tensor, num_pids: int) -> dict:
        teacher = cfg.MODEL.PSDIFF.TEACHER
        return {
            "num_pids": num_pids,
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "label_smoothing": teacher.LABEL_SMOOTHING,
            "margin": teacher.MARGIN,
            "center_weight": teacher.CENTER_WEIGHT,
        }

    def triplet(self, feats: Tensor, pids: Tensor) -> Tensor:
        """Of features (n, D) in front of the neck."""
        return batch_hard_triplet(feats, pids, self.margin)

    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(feats.after_neck)
        return {
            "loss_id": F.cross_entropy(logits, pids, label_smoothing=self.label_smoothing),
            "loss_triplet": self.triplet(feats.before_neck, pids),
            "loss_center": self.center_weight * self.center(feats.before_neck, pids),
        }
