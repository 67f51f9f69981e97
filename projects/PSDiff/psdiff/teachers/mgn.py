# SPDX-License-Identifier: Apache-2.0
"""MGN: a global branch and two branches that look at two and at three parts of a person.

Wang et al.: *Learning discriminative features with multiple granularities for person
re-identification*, 2018. Its answer is the concatenation of eight reduced features. Here a linear
layer and a batch norm, trained with the same kinds of loss, bring it to D numbers.
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
"""Stripes of the three branches; 1 is the global branch."""


class MGNNet(TeacherNet):
    """Shared trunk, three branches, eight reduced features, head.

    The trunk ends after the first block of the last stage but one. Each branch has its own copy of
    what follows; the last stage halves the map in the global branch only. Every branch gives a max
    pooled feature of the whole person, the second and the third also one of each stripe. Reduction:
    linear to PART_DIM, batch norm, ReLU.
    """

    last_stride = 2  # of the global branch; from_config takes it out of the two others

    @configurable
    def __init__(self, *, branches: nn.ModuleList, channels: int, part_dim: int, **kwargs) -> None:
        """
        Args:
            branches: one per entry of ``PARTS``. channels: C that they give.
            part_dim: length of a reduced feature.
            **kwargs: of :class:`TeacherNet`; its backbone is the trunk.
        """
        super().__init__(**kwargs)
        self.branches = branches
        self.channels, self.part_dim = channels, part_dim
        self.reductions = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, part_dim, bias=False), nn.BatchNorm1d(part_dim), nn.ReLU()
            )
            for _ in range(num_features())
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
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
            "pooled_dim": num_features() * part_dim,
        }

    def describe(self, crops: Tensor) -> TeacherFeatures:
        trunk = self.backbone(self.normalized(crops))
        maps = [branch(trunk) for branch in self.branches]
        whole = [x.amax(dim=(2, 3)) for x in maps]
        stripes = [s for x, n in zip(maps, PARTS, strict=True) if n > 1 for s in _stripes(x, n)]
        reduced = [reduce(x) for reduce, x in zip(self.reductions, [*whole, *stripes], strict=True)]
        first = len(whole)
        return TeacherFeatures(
            *self.head(torch.cat(reduced, dim=1)),
            whole=tuple(whole),
            reduced=tuple(reduced[:first]),
            parts=tuple(reduced[first:]),
        )


def num_features() -> int:
    """Reduced features of all branches: eight."""
    return len(PARTS) + sum(n for n in PARTS if n > 1)


def _stripes(x: Tensor, count: int) -> list[Tensor]:
    return pool_stripes(x, count, "max")


class MGNLoss(TeacherLoss):
    """Softmax on whole features before and on part features after reduction, triplet on the former.

    The triplet is taken on the *reduced* whole features. Classifiers have no bias, and each feature
    has its own. Losses are averaged over features; those of the embedding stand beside them.
    """

    @configurable
    def __init__(
        self, *, num_pids: int, embed_dim: int, channels: int, part_dim: int, margin: float
    ) -> None:
        """
        Args:
            num_pids: I. embed_dim: D. channels, part_dim: of the network.
            margin: of the triplet loss.
        """
        super().__init__()
        self.margin = margin
        dims = [channels] * len(PARTS) + [part_dim] * (num_features() - len(PARTS))
        self.classifiers = nn.ModuleList(nn.Linear(d, num_pids, bias=False) for d in dims)
        self.classifier = nn.Linear(embed_dim, num_pids, bias=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, net: MGNNet, pids: Tensor, num_pids: int) -> dict:
        return {
            "num_pids": num_pids,
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "channels": net.channels,
            "part_dim": net.part_dim,
            "margin": cfg.MODEL.PSDIFF.TEACHER.MARGIN,
        }

    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        classified = zip(self.classifiers, [*feats.whole, *feats.parts], strict=True)
        per_feature = [F.cross_entropy(classify(x), pids) for classify, x in classified]
        triplets = [batch_hard_triplet(x, pids, self.margin) for x in feats.reduced]
        return {
            "loss_id": torch.stack(per_feature).mean(),
            "loss_triplet": torch.stack(triplets).mean(),
            "loss_id_embedding": F.cross_entropy(self.classifier(feats.after_neck), pids),
            "loss_triplet_embedding": batch_hard_triplet(feats.before_neck, pids, self.margin),
        }
