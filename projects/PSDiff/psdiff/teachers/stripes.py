# SPDX-License-Identifier: Apache-2.0
"""Stripes: feature maps of an ImageNet network, compared stripe by stripe; for little data.

With few identities, a trained network forgets what ImageNet taught it. Here the backbone is frozen,
and the head is computed in closed form from the training crops: principal components, whitening of
the variation within identities (Hatch et al.: *Within-class covariance normalization for SVM-based
speaker recognition*, 2006), principal components.

Shape shorthand in this file:
    n: crops of a batch. M: all training crops. C: channels of all maps. S: stripes.
    P: components before whitening. D: embedding dimension.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from person_search.schema import UNLABELED_PID
from psdiff.teachers.hhcl import HHCLLoss
from psdiff.teachers.layers import pool_stripes
from psdiff.teachers.losses import DescribeRows
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet

_SHRINKAGE = 0.03
"""Share of a multiple of the identity matrix in the covariance within identities."""


class StripesNet(TeacherNet):
    """Frozen backbone, each map averaged in stripes and scaled to unit norm, head over all."""

    @configurable
    def __init__(self, *, num_parts: int, **kwargs) -> None:
        """Freezes the backbone.

        Args:
            num_parts: Number of stripes S.
            **kwargs: Arguments of :class:`TeacherNet`; the backbone returns a list of maps.
        """
        super().__init__(**kwargs)
        self.num_parts = num_parts
        self.backbone.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the arguments of ``__init__``."""
        teacher = cfg.MODEL.PSDIFF.TEACHER
        if not teacher.FEATURES:
            raise ValueError(
                "MODEL.PSDIFF.TEACHER.FEATURES is empty; the teacher 'stripes' needs the names of "
                "feature maps, for example ['res2', 'res3'] (strides 4 and 8)."
            )
        args = super().from_config(cfg)
        pooled = args["pooled_dim"] * teacher.NUM_PARTS
        return {**args, "num_parts": teacher.NUM_PARTS, "pooled_dim": pooled}

    def train(self, mode: bool = True) -> "StripesNet":
        """Sets the mode; the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def describe(self, crops: Tensor) -> TeacherFeatures:
        """Computes all features of crops (n, 3, H, W)."""
        maps = self.backbone(self.normalized(crops))
        stripes = [torch.cat(pool_stripes(x, self.num_parts, "avg"), dim=1) for x in maps]
        pooled = torch.cat([F.normalize(x, dim=1) for x in stripes], dim=1)
        return TeacherFeatures(*self.head(pooled), whole=(pooled,))

    @torch.no_grad()
    def fit(self, pooled: Tensor, pids: Tensor) -> None:
        """Computes the head, such that the embedding is a linear function of the centered input.

        Args:
            pooled: Pooled features (M, S C) of the training crops.
            pids: Their person ids (M,).

        Raises:
            ValueError: If there are too few crops, or no identity has two.
        """
        dim = self.neck.num_features
        counts = pids[pids != UNLABELED_PID].bincount()
        if len(pooled) <= 2 * dim or not (counts > 1).any():
            raise ValueError(
                f"The teacher 'stripes' needs more than 2 MODEL.REID.EMBED_DIM = {2 * dim} crops "
                f"and an identity with two of them, but has {len(pooled)} crops of "
                f"{int((counts > 0).sum())} identities."
            )
        centered = pooled - pooled.mean(dim=0)
        projection = _components(centered, 2 * dim, -0.5)  # (S C, P)
        residuals = centered @ projection
        for pid in range(len(counts)):
            residuals[pids == pid] -= residuals[pids == pid].mean(dim=0)
        residuals = residuals[pids != UNLABELED_PID]
        within = residuals.T @ residuals / len(residuals)
        within = within.lerp(within.diagonal().mean() * torch.eye(len(within)), _SHRINKAGE)
        values, vectors = torch.linalg.eigh(within)
        projection = projection @ (vectors * values.rsqrt()) @ vectors.T
        # directions in which persons differ most count more
        projection = projection @ _components(centered @ projection, dim, 0.5)  # (S C, D)
        self.project.weight.copy_(projection.T)
        self.neck.running_mean.copy_(pooled.mean(dim=0) @ projection)
        self.neck.running_var.fill_(1 - self.neck.eps)


def _components(centered: Tensor, count: int, power: float) -> Tensor:
    """Returns principal directions (C, count), scaled by a power of their standard deviations."""
    _, values, directions = torch.linalg.svd(centered, full_matrices=False)
    values, directions = values[:count], directions[:count]
    return directions.T * (values / len(centered) ** 0.5) ** power


class StripesLoss(HHCLLoss):
    """Computes the head before the first epoch; a training of the head goes on as that of HHCL."""

    @configurable
    def __init__(self, *, net: StripesNet, **kwargs) -> None:
        """Stores the network's method.

        Args:
            net: Network.
            **kwargs: Arguments of :class:`HHCLLoss`.
        """
        super().__init__(**kwargs)
        self._fit = net.fit  # not the network itself, which would become a part of the loss

    @classmethod
    def from_config(cls, cfg: CfgNode, net: StripesNet, pids: Tensor, num_pids: int) -> dict:
        """Returns the arguments of ``__init__``."""
        return {**super().from_config(cfg, net, pids, num_pids), "net": net}

    def start_epoch(self, epoch: int, describe: DescribeRows) -> None:
        """Computes the head and fills the memory before the first epoch."""
        if epoch == 0:
            rows = torch.arange(len(self.pids))
            self._fit(torch.cat([part.whole[0] for part in describe(rows)]).cpu(), self.pids.cpu())
        super().start_epoch(epoch, describe)
