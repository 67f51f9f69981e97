# SPDX-License-Identifier: Apache-2.0
"""S-ReID: the strong baseline with its batch norm neck.

Luo et al.: *A strong baseline and batch normalization neck for deep person re-identification*,
2019. Triplet and center loss act before the neck, the classification loss after it. The neck does
not shift and the classifier has no bias, so that classes lie around the origin.
"""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psdiff.teachers.losses import CenterLoss, TeacherLoss, batch_hard_triplet
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet


class SReIDNet(TeacherNet):
    """Backbone, average pooling, head."""

    neck_bias = False

    def describe(self, crops: Tensor) -> TeacherFeatures:
        """Computes all features of crops (n, 3, H, W)."""
        pooled = self.backbone(self.normalized(crops)).mean(dim=(2, 3))
        return TeacherFeatures(*self.head(pooled), whole=(pooled,))


class BaselineLoss(TeacherLoss):
    """Softmax loss with label smoothing after the neck; triplet and center loss before it.

    Subclasses replace the triplet.
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
        """Builds classifier and centers.

        Args:
            num_pids: Number of training identities I.
            embed_dim: Embedding dimension D.
            label_smoothing: Share of a label that is distributed evenly over all identities.
            margin: Margin of the triplet loss.
            center_weight: Weight of the center loss.
        """
        super().__init__()
        self.label_smoothing, self.margin = label_smoothing, margin
        self.center_weight = center_weight
        self.classifier = nn.Linear(embed_dim, num_pids, bias=False)
        self.center = CenterLoss(num_pids, embed_dim)
        nn.init.normal_(self.classifier.weight, std=0.001)

    @classmethod
    def from_config(cls, cfg: CfgNode, net: TeacherNet, pids: Tensor, num_pids: int) -> dict:
        """Returns the arguments of ``__init__``."""
        teacher = cfg.MODEL.PSDIFF.TEACHER
        return {
            "num_pids": num_pids,
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "label_smoothing": teacher.LABEL_SMOOTHING,
            "margin": teacher.MARGIN,
            "center_weight": teacher.CENTER_WEIGHT,
        }

    def triplet(self, feats: Tensor, pids: Tensor) -> Tensor:
        """Computes the triplet loss of features (n, D) before the neck."""
        return batch_hard_triplet(feats, pids, self.margin)

    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Computes the losses of a batch, see :class:`TeacherLoss`."""
        logits = self.classifier(feats.after_neck)
        return {
            "loss_id": F.cross_entropy(logits, pids, label_smoothing=self.label_smoothing),
            "loss_triplet": self.triplet(feats.before_neck, pids),
            "loss_center": self.center_weight * self.center(feats.before_neck, pids),
        }
