# SPDX-License-Identifier: Apache-2.0
"""PPLR: whole and part features that correct each other's labels, here with true labels.

Cho et al.: *Part-based pseudo label refinement for unsupervised person re-identification*, 2022.
Its answer is the concatenation of the whole feature and the parts. Here a linear layer and a batch
norm, trained with the loss of the whole feature, bring it to D numbers. Clusters are replaced by
identities; the camera-aware loss is left out, since CUHK-SYSU has no camera labels.

Shape shorthand in this file:
    n: crops of a batch. S: stripes. I: identities. M: all training crops. C: channels.
"""

import logging

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from person_search.schema import UNLABELED_PID
from psdiff.teachers.agreement import cross_agreement, nearest_neighbors
from psdiff.teachers.layers import pool_stripes
from psdiff.teachers.losses import DescribeRows, TeacherLoss, softmax_triplet
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet

logger = logging.getLogger(__name__)


class PPLRNet(TeacherNet):
    """Backbone, mean over the person and over each stripe, head over all of them."""

    @configurable
    def __init__(self, *, num_parts: int, channels: int, **kwargs) -> None:
        """
        Args:
            num_parts: S. channels: C of the backbone.
            **kwargs: of :class:`TeacherNet`.
        """
        super().__init__(**kwargs)
        self.num_parts, self.channels = num_parts, channels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        args, num_parts = super().from_config(cfg), cfg.MODEL.PSDIFF.TEACHER.NUM_PARTS
        channels = args["pooled_dim"]
        pooled = (1 + num_parts) * channels
        return {**args, "num_parts": num_parts, "channels": channels, "pooled_dim": pooled}

    def describe(self, crops: Tensor) -> TeacherFeatures:
        x = self.backbone(self.normalized(crops))
        whole, parts = x.mean(dim=(2, 3)), pool_stripes(x, self.num_parts, "avg")
        pooled = torch.cat([whole, *parts], dim=1)
        return TeacherFeatures(*self.head(pooled), whole=(whole,), parts=tuple(parts))


class PPLRLoss(TeacherLoss):
    """Label refinement by parts for the whole, agreement-aware label smoothing for parts, triplet.

    With C_s the agreement of stripe s and the whole on the neighbours of a crop:

    - whole and embedding learn LABEL_WEIGHT of the label, and the rest from what the parts
      predict, weighted by softmax over s of C_s (part-guided label refinement);
    - stripe s learns the share C_s of the label and evenly all identities for the rest
      (agreement-aware label smoothing);
    - both whole and embedding have a softmax triplet.

    Agreement is computed before each epoch over all labelled training crops; until the epoch
    AGREEMENT_FROM_EPOCH the labels are taken as they are.
    """

    @configurable
    def __init__(
        self,
        *,
        num_pids: int,
        embed_dim: int,
        channels: int,
        num_parts: int,
        pids: Tensor,
        neighbors: int,
        label_weight: float,
        from_epoch: int,
    ) -> None:
        """
        Args:
            num_pids: I. embed_dim: D. channels: C. num_parts: S.
            pids: (M,) of all training crops.
            neighbors: compared by the agreement. label_weight: of the given label.
            from_epoch: first epoch that uses the agreement.
        """
        super().__init__()
        self.neighbors, self.label_weight, self.from_epoch = neighbors, label_weight, from_epoch
        self.necks = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(1 + num_parts))
        self.classifiers = nn.ModuleList(
            nn.Linear(channels, num_pids, bias=False) for _ in range(1 + num_parts)
        )
        self.classifier = nn.Linear(embed_dim, num_pids, bias=False)
        self.register_buffer("labeled_rows", (pids != UNLABELED_PID).nonzero().flatten(), False)
        self.register_buffer("agreement", torch.ones(len(pids), num_parts))
        self.register_buffer("agreement_known", torch.tensor(False))

    @classmethod
    def from_config(cls, cfg: CfgNode, net: PPLRNet, pids: Tensor, num_pids: int) -> dict:
        teacher = cfg.MODEL.PSDIFF.TEACHER
        return {
            "num_pids": num_pids,
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "channels": net.channels,
            "num_parts": net.num_parts,
            "pids": pids,
            "neighbors": teacher.NEIGHBORS,
            "label_weight": teacher.LABEL_WEIGHT,
            "from_epoch": teacher.AGREEMENT_FROM_EPOCH,
        }

    @torch.no_grad()
    def start_epoch(self, epoch: int, describe: DescribeRows) -> None:
        if epoch < self.from_epoch:
            return
        seen = [(f.whole[0], torch.stack(f.parts)) for f in describe(self.labeled_rows)]
        whole = nearest_neighbors(torch.cat([w for w, _ in seen]), self.neighbors)
        for part, feats in enumerate(torch.cat([p for _, p in seen], dim=1)):
            agreement = cross_agreement(whole, nearest_neighbors(feats, self.neighbors))
            self.agreement[self.labeled_rows, part] = agreement
        self.agreement_known.fill_(True)
        mean = self.agreement[self.labeled_rows].mean(dim=0).tolist()
        logger.info("Agreement of stripes and whole: %s", ", ".join(f"{m:.2f}" for m in mean))

    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        branches = zip(self.classifiers, self.necks, [*feats.whole, *feats.parts], strict=True)
        whole, *parts = [classify(neck(x)) for classify, neck, x in branches]
        agreement = self.agreement[rows]  # (n, S)
        labels = F.one_hot(pids, whole.shape[1]).to(whole.dtype)  # (n, I)
        refined = labels
        if self.agreement_known:
            refined = refine_labels(labels, torch.stack(parts, dim=1), agreement, self.label_weight)
        smoothed = [smooth_labels(labels, agreement[:, s]) for s in range(len(parts))]
        per_part = [F.cross_entropy(x, y) for x, y in zip(parts, smoothed, strict=True)]
        return {
            "loss_id": F.cross_entropy(whole, refined),
            "loss_id_parts": torch.stack(per_part).mean(),
            "loss_triplet": softmax_triplet(feats.whole[0], pids),
            "loss_id_embedding": F.cross_entropy(self.classifier(feats.after_neck), refined),
            "loss_triplet_embedding": softmax_triplet(feats.before_neck, pids),
        }


def refine_labels(labels: Tensor, parts: Tensor, agreement: Tensor, weight: float) -> Tensor:
    """Labels mixed with what the parts predict, the more agreeing part the heavier.

    Args:
        labels: (n, I) one-hot. parts: (n, S, I) logits. agreement: (n, S). weight: of the labels.

    Returns:
        (n, I), rows of sum one, without a graph.
    """
    said = (parts.detach().softmax(dim=2) * agreement.softmax(dim=1)[:, :, None]).sum(dim=1)
    return weight * labels + (1 - weight) * said


def smooth_labels(labels: Tensor, agreement: Tensor) -> Tensor:
    """Labels (n, I) kept by the share ``agreement`` (n,), the rest spread evenly."""
    kept = agreement[:, None]
    return kept * labels + (1 - kept) / labels.shape[1]
