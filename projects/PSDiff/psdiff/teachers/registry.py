# SPDX-License-Identifier: Apache-2.0
"""The teachers by name (``MODEL.PSDIFF.TEACHER.NAME``)."""

from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

from psdiff.teachers.agw import AGWLoss, AGWNet
from psdiff.teachers.hhcl import HHCLLoss, HHCLNet
from psdiff.teachers.losses import TeacherLoss
from psdiff.teachers.mgn import MGNLoss, MGNNet
from psdiff.teachers.pplr import PPLRLoss, PPLRNet
from psdiff.teachers.reid_net import TeacherNet
from psdiff.teachers.s_reid import BaselineLoss, SReIDNet


@dataclass(frozen=True)
class TeacherMethod:
    """A network, called with ``cfg``, and a loss, called with ``cfg, net=, pids=, num_pids=``."""

    net: type[TeacherNet]
    loss: type[TeacherLoss]


TEACHER_REGISTRY: dict[str, TeacherMethod] = {
    "hhcl": TeacherMethod(HHCLNet, HHCLLoss),
    "s_reid": TeacherMethod(SReIDNet, BaselineLoss),
    "mgn": TeacherMethod(MGNNet, MGNLoss),
    "agw": TeacherMethod(AGWNet, AGWLoss),
    "pplr": TeacherMethod(PPLRNet, PPLRLoss),
}
"""The rows of Table VI. One's own: ``TEACHER_REGISTRY["mine"] = TeacherMethod(MyNet, MyLoss)``."""


def _method(cfg: CfgNode) -> TeacherMethod:
    name = cfg.MODEL.PSDIFF.TEACHER.NAME
    if name not in TEACHER_REGISTRY:
        raise ValueError(
            f"MODEL.PSDIFF.TEACHER.NAME is '{name}'; allowed: {', '.join(TEACHER_REGISTRY)}."
        )
    return TEACHER_REGISTRY[name]


def build_teacher(cfg: CfgNode) -> TeacherNet:
    """Builds the network of ``cfg.MODEL.PSDIFF.TEACHER``; crops (n, 3, H, W) -> (n, D).

    Raises:
        ValueError: a method or backbone that does not exist, or that do not go together.
    """
    return _method(cfg).net(cfg)


def build_teacher_loss(cfg: CfgNode, net: TeacherNet, pids: Tensor, num_pids: int) -> TeacherLoss:
    """Builds the loss that belongs to a network.

    Args:
        net: of :func:`build_teacher`. pids: (M,) int64 of all training crops.
        num_pids: identities; 0 .. num_pids - 1 occur in ``pids``.
    """
    return _method(cfg).loss(cfg, net=net, pids=pids, num_pids=num_pids)
