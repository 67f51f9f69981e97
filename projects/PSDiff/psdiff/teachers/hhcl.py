# SPDX-License-Identifier: Apache-2.0
"""HHCL, the teacher of the paper, with identities instead of clusters.

Hu, Zhu, He: *Hard-sample guided hybrid contrast learning for unsupervised person
re-identification*, 2021. A batch is contrasted with the centroid and the hardest instance of each
identity, which are kept in a memory. PSDiff (Section IV-A) adds unlabeled persons to it.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from person_search.schema import UNLABELED_PID
from psdiff.config import check_choice, check_range
from psdiff.teachers.layers import GeneralizedMeanPool
from psdiff.teachers.losses import DescribeRows, TeacherLoss
from psdiff.teachers.memory import HybridMemory, UnlabeledInstances, UnlabeledQueue
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet


class HHCLNet(TeacherNet):
    """Backbone, generalized mean pooling, head; 24.03 M weights with ResNet-50 and D = 256."""

    @configurable
    def __init__(self, **kwargs) -> None:
        """Builds the pooling; ``kwargs`` are the arguments of :class:`TeacherNet`."""
        super().__init__(**kwargs)
        self.pool = GeneralizedMeanPool()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the arguments of ``__init__``."""
        return super().from_config(cfg)

    def describe(self, crops: Tensor) -> TeacherFeatures:
        """Computes all features of crops (n, 3, H, W)."""
        pooled = self.pool(self.backbone(self.normalized(crops)))
        return TeacherFeatures(*self.head(pooled), whole=(pooled,))


class HHCLLoss(TeacherLoss):
    """Loss of the hybrid memory, which the initial network fills before the first epoch."""

    @configurable
    def __init__(self, *, memory: HybridMemory, pids: Tensor, init_memory: bool) -> None:
        """Stores the memory.

        Args:
            memory: Memory of all training identities.
            pids: Person ids (M,) of all training crops.
            init_memory: Fills the memory before the first epoch.
        """
        super().__init__()
        self.memory, self.init_memory = memory, init_memory
        self.uses_unlabeled = memory.unlabeled is not None
        self.register_buffer("pids", pids, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, net: TeacherNet, pids: Tensor, num_pids: int) -> dict:
        """Returns the arguments of ``__init__``."""
        teacher, dim = cfg.MODEL.PSDIFF.TEACHER, cfg.MODEL.REID.EMBED_DIM
        memory = HybridMemory(
            num_pids,
            dim,
            temperature=teacher.TEMPERATURE,
            momentum=teacher.MOMENTUM,
            mix=teacher.MIX,
            unlabeled=_build_unlabeled(cfg, pids),
        )
        return {"memory": memory, "pids": pids, "init_memory": teacher.INIT_MEMORY}

    def start_epoch(self, epoch: int, describe: DescribeRows) -> None:
        """Fills the memory before the first epoch."""
        if epoch == 0 and self.init_memory:
            rows = torch.arange(len(self.pids))
            feats = torch.cat([part.embedding for part in describe(rows)])
            self.memory.fill(feats, self.pids)

    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Computes the losses of a batch, see :class:`TeacherLoss`."""
        return {"loss_memory": self.memory(feats.embedding, pids, rows)}


def _build_unlabeled(cfg: CfgNode, pids: Tensor) -> UnlabeledInstances | UnlabeledQueue | None:
    teacher, dim = cfg.MODEL.PSDIFF.TEACHER, cfg.MODEL.REID.EMBED_DIM
    check_choice("TEACHER.UNLABELED", teacher.UNLABELED, ("instances", "queue", "none"))
    if teacher.UNLABELED == "none" or not (pids == UNLABELED_PID).any():
        return None
    if teacher.UNLABELED == "instances":
        return UnlabeledInstances(pids, dim, teacher.MOMENTUM)
    check_range("TEACHER.QUEUE_SIZE", teacher.QUEUE_SIZE, 1)
    return UnlabeledQueue(teacher.QUEUE_SIZE, dim)
