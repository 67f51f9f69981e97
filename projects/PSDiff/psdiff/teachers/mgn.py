# SPDX-License-Identifier: Apache-2.0
"""MGN: a global branch and two branches for two and three parts of a person.

Wang et al.: *Learning discriminative features with multiple granularities for person
re-identification*, 2018. Its output is the concatenation of eight reduced features. Here a linear
layer and a batch norm, trained with the same kinds of loss, project it to D dimensions.
"""

import copy

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from psdiff.teachers.backbones import remove_stride, require_stages
from psdiff.teachers.layers import pool_stripes
from psdiff.teachers.losses import TeacherLoss, batch_hard_triplet
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet

PARTS = (1, 2, 3)
"""Number of stripes of each branch; 1 is the global branch."""
NUM_FEATURES = len(PARTS) + sum(n for n in PARTS if n > 1)
"""Number of reduced features of all branches: eight."""


class MGNNet(TeacherNet):
    """Shared trunk, three branches, eight reduced features, head.

    The trunk ends after the first block of the second-to-last stage. Each branch has its own copy
    of the remaining layers; the last stage has stride 2 in the global branch only. Each branch
    max-pools the whole person, the second and the third also each stripe. A reduction is a linear
    layer to PART_DIM, batch norm and ReLU.
    """

    last_stride = 2  # of the global branch; from_config removes it from the others

    @configurable
    def __init__(self, *, branches: nn.ModuleList, channels: int, part_dim: int, **kwargs) -> None:
        """Builds the reductions.

        Args:
            branches: One branch per entry of ``PARTS``.
            channels: Output channels C of the branches.
            part_dim: Dimension of a reduced feature.
            **kwargs: Arguments of :class:`TeacherNet`; its backbone is the trunk.
        """
        super().__init__(**kwargs)
        self.branches = branches
        self.channels, self.part_dim = channels, part_dim
        self.reductions = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, part_dim, bias=False), nn.BatchNorm1d(part_dim), nn.ReLU()
            )
            for _ in range(NUM_FEATURES)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the arguments of ``__init__``."""
        args = super().from_config(cfg)
        whole = require_stages(args["backbone"], "mgn")
        *early, middle, last = whole.stages
        tail = nn.Sequential(*middle[1:], *last)
        finer = copy.deepcopy(tail)
        remove_stride(finer[len(middle) - 1 :])
        branches = nn.ModuleList([tail, finer, copy.deepcopy(finer)])
        part_dim = cfg.MODEL.PSDIFF.TEACHER.PART_DIM
        return {
            **args,
            "backbone": nn.Sequential(whole.stem, *early, middle[0]),
            "branches": branches,
            "channels": whole.channels,
            "part_dim": part_dim,
            "pooled_dim": NUM_FEATURES * part_dim,
        }

    def describe(self, crops: Tensor) -> TeacherFeatures:
        """Computes all features of crops (n, 3, H, W)."""
        trunk = self.backbone(self.normalized(crops))
        maps = [branch(trunk) for branch in self.branches]
        whole = [x.amax(dim=(2, 3)) for x in maps]
        stripes = [
            stripe
            for x, count in zip(maps, PARTS, strict=True)
            if count > 1
            for stripe in pool_stripes(x, count, "max")
        ]
        reduced = [reduce(x) for reduce, x in zip(self.reductions, [*whole, *stripes], strict=True)]
        first = len(whole)
        return TeacherFeatures(
            *self.head(torch.cat(reduced, dim=1)),
            whole=tuple(whole),
            reduced=tuple(reduced[:first]),
            parts=tuple(reduced[first:]),
        )


class MGNLoss(TeacherLoss):
    """Softmax loss and triplet loss, averaged over features; separate losses for the embedding.

    The softmax loss acts on whole features before reduction and part features after it, the triplet
    loss on whole features after it. Each feature has its own classifier without bias.
    """

    @configurable
    def __init__(
        self, *, num_pids: int, embed_dim: int, channels: int, part_dim: int, margin: float
    ) -> None:
        """Builds the classifiers.

        Args:
            num_pids: Number of training identities.
            embed_dim: Embedding dimension D.
            channels: Channels of the whole features.
            part_dim: Dimension of the reduced features.
            margin: Margin of the triplet loss.
        """
        super().__init__()
        self.margin = margin
        dims = [channels] * len(PARTS) + [part_dim] * (NUM_FEATURES - len(PARTS))
        self.classifiers = nn.ModuleList(nn.Linear(d, num_pids, bias=False) for d in dims)
        self.classifier = nn.Linear(embed_dim, num_pids, bias=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, net: MGNNet, pids: Tensor, num_pids: int) -> dict:
        """Returns the arguments of ``__init__``."""
        return {
            "num_pids": num_pids,
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "channels": net.channels,
            "part_dim": net.part_dim,
            "margin": cfg.MODEL.PSDIFF.TEACHER.MARGIN,
        }

    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Computes the losses of a batch, see :class:`TeacherLoss`."""
        classified = zip(self.classifiers, [*feats.whole, *feats.parts], strict=True)
        per_feature = [F.cross_entropy(classify(x), pids) for classify, x in classified]
        triplets = [batch_hard_triplet(x, pids, self.margin) for x in feats.reduced]
        return {
            "loss_id": torch.stack(per_feature).mean(),
            "loss_triplet": torch.stack(triplets).mean(),
            "loss_id_embedding": F.cross_entropy(self.classifier(feats.after_neck), pids),
            "loss_triplet_embedding": batch_hard_triplet(feats.before_neck, pids, self.margin),
        }
