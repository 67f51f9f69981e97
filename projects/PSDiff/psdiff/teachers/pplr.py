# SPDX-License-Identifier: Apache-2.0
"""PPLR: whole and part features that refine each other's labels, here with true labels.

Cho et al.: *Part-based pseudo label refinement for unsupervised person re-identification*, 2022.
Its output is the concatenation of the whole feature and the parts. Here a linear layer and a batch
norm, trained with the loss of the whole feature, project it to D dimensions. Identities replace
clusters, and the camera-aware loss is omitted, since CUHK-SYSU has no camera labels.

Shape shorthand in this file:
    n: crops of a batch. S: stripes. I: identities. M: all training crops. C: channels.
    k: neighbors of a crop.
"""

import logging

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from person_search.schema import UNLABELED_PID
from psdiff.teachers.layers import pool_stripes
from psdiff.teachers.losses import DescribeRows, TeacherLoss, softmax_triplet
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet

logger = logging.getLogger(__name__)


class PPLRNet(TeacherNet):
    """Backbone, average pooling of the person and of each stripe, head over all of them."""

    @configurable
    def __init__(self, *, num_parts: int, channels: int, **kwargs) -> None:
        """Stores the sizes.

        Args:
            num_parts: Number of stripes S.
            channels: Channels C of the backbone.
            **kwargs: Arguments of :class:`TeacherNet`.
        """
        super().__init__(**kwargs)
        self.num_parts, self.channels = num_parts, channels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the arguments of ``__init__``."""
        args, num_parts = super().from_config(cfg), cfg.MODEL.PSDIFF.TEACHER.NUM_PARTS
        channels = args["pooled_dim"]
        pooled = (1 + num_parts) * channels
        return {**args, "num_parts": num_parts, "channels": channels, "pooled_dim": pooled}

    def describe(self, crops: Tensor) -> TeacherFeatures:
        """Computes all features of crops (n, 3, H, W)."""
        x = self.backbone(self.normalized(crops))
        whole, parts = x.mean(dim=(2, 3)), pool_stripes(x, self.num_parts, "avg")
        pooled = torch.cat([whole, *parts], dim=1)
        return TeacherFeatures(*self.head(pooled), whole=(whole,), parts=tuple(parts))


class PPLRLoss(TeacherLoss):
    """Part-guided label refinement, agreement-aware label smoothing, triplet.

    With C_s the agreement of stripe s and the whole person on the neighbors of a crop:

    - The target of whole feature and embedding is the label with weight LABEL_WEIGHT, and the
      predictions of the parts, weighted by softmax over s of C_s, with the remaining weight.
    - The target of stripe s is the label with weight C_s, and the uniform distribution with the
      remaining weight.
    - Whole feature and embedding have a softmax triplet loss.

    Agreement is computed before each epoch over all labeled training crops. As in the release, the
    labels of the stripes are smoothed from the epoch AGREEMENT_FROM_EPOCH on, and used unchanged
    before it; the labels of the whole person are refined from the first epoch on.
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
        """Builds necks, classifiers and the agreement.

        Args:
            num_pids: Number of training identities I.
            embed_dim: Embedding dimension D.
            channels: Channels C of the features.
            num_parts: Number of stripes S.
            pids: Person ids (M,) of all training crops.
            neighbors: Number of neighbors k compared by the agreement.
            label_weight: Weight of the given label.
            from_epoch: First epoch that smooths the labels of the stripes.
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
        self.register_buffer("smooths", torch.tensor(False))

    @classmethod
    def from_config(cls, cfg: CfgNode, net: PPLRNet, pids: Tensor, num_pids: int) -> dict:
        """Returns the arguments of ``__init__``."""
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
        """Computes the agreement of all labeled training crops."""
        seen = [(f.whole[0], torch.stack(f.parts)) for f in describe(self.labeled_rows)]
        whole = nearest_neighbors(torch.cat([w for w, _ in seen]), self.neighbors)
        for part, feats in enumerate(torch.cat([p for _, p in seen], dim=1)):
            agreement = cross_agreement(whole, nearest_neighbors(feats, self.neighbors))
            self.agreement[self.labeled_rows, part] = agreement
        self.smooths.fill_(epoch >= self.from_epoch)
        mean = self.agreement[self.labeled_rows].mean(dim=0).tolist()
        logger.info(
            "Agreement of stripes and whole person: %s", ", ".join(f"{m:.2f}" for m in mean)
        )

    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Computes the losses of a batch, see :class:`TeacherLoss`."""
        branches = zip(self.classifiers, self.necks, [*feats.whole, *feats.parts], strict=True)
        whole, *parts = [classify(neck(x)) for classify, neck, x in branches]
        agreement = self.agreement[rows]  # (n, S)
        labels = F.one_hot(pids, whole.shape[1]).to(whole.dtype)  # (n, I)
        refined = refine_labels(labels, torch.stack(parts, dim=1), agreement, self.label_weight)
        kept = agreement if self.smooths else torch.ones_like(agreement)
        smoothed = [smooth_labels(labels, kept[:, s]) for s in range(len(parts))]
        per_part = [F.cross_entropy(x, y) for x, y in zip(parts, smoothed, strict=True)]
        return {
            "loss_id": F.cross_entropy(whole, refined),
            "loss_id_parts": torch.stack(per_part).mean(),
            "loss_triplet": softmax_triplet(feats.whole[0], pids),
            "loss_id_embedding": F.cross_entropy(self.classifier(feats.after_neck), refined),
            "loss_triplet_embedding": softmax_triplet(feats.before_neck, pids),
        }


def refine_labels(labels: Tensor, parts: Tensor, agreement: Tensor, weight: float) -> Tensor:
    """Mixes labels with the predictions of the parts, weighted by their agreement.

    Args:
        labels: One-hot labels (n, I).
        parts: Logits (n, S, I) of the parts.
        agreement: Agreement (n, S) of the parts.
        weight: Weight of the labels.

    Returns:
        Targets (n, I) with rows of sum one, without gradient.
    """
    predicted = (parts.detach().softmax(dim=2) * agreement.softmax(dim=1)[:, :, None]).sum(dim=1)
    return weight * labels + (1 - weight) * predicted


def smooth_labels(labels: Tensor, agreement: Tensor) -> Tensor:
    """Mixes labels (n, I), with weights ``agreement`` (n,), and the uniform distribution."""
    kept = agreement[:, None]
    return kept * labels + (1 - kept) / labels.shape[1]


def nearest_neighbors(feats: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Finds the crops with the highest cosine similarity to each crop, without itself.

    Args:
        feats: Features (M, C) of any norm.
        k: Number of neighbors, at most M - 1.
        chunk: Rows compared at once, which bounds the memory to ``chunk`` * M similarities.

    Returns:
        Indices (M, min(k, M - 1)) int64.
    """
    feats = F.normalize(feats, dim=1)
    k = min(k, len(feats) - 1)
    found = []
    for start in range(0, len(feats), chunk):
        sim = feats[start : start + chunk] @ feats.T
        own = torch.arange(start, start + len(sim), device=sim.device)
        sim.scatter_(1, own[:, None], -torch.inf)
        found.append(sim.topk(k, dim=1).indices)
    return torch.cat(found)


def cross_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Computes the cross agreement score, the Jaccard index of two sets of neighbors (PPLR, Eq. 1).

    Args:
        first: Neighbors (M, k) int64 of each crop by one kind of feature.
        second: Neighbors (M, k) int64 of the same crops by another kind.

    Returns:
        Agreement (M,) from 0 (disjoint sets) to 1 (equal sets).
    """
    k = first.shape[1]
    common = (first[:, :, None] == second[:, None, :]).sum(dim=(1, 2))
    return common / (2 * k - common)
