# SPDX-License-Identifier: Apache-2.0
"""Builds the teachers by name (``MODEL.PSDIFF.TEACHER.NAME``)."""

import logging
from typing import NamedTuple

from detectron2.config import CfgNode
from torch import Tensor

from person_search.schema import UNLABELED_PID
from psdiff.config import check_choice
from psdiff.teachers.agw import AGWLoss, AGWNet
from psdiff.teachers.folder import WEIGHTS_FILE, read_source, teacher_folder
from psdiff.teachers.hhcl import HHCLLoss, HHCLNet
from psdiff.teachers.losses import TeacherLoss
from psdiff.teachers.mgn import MGNLoss, MGNNet
from psdiff.teachers.pplr import PPLRLoss, PPLRNet
from psdiff.teachers.reid_net import TeacherNet
from psdiff.teachers.s_reid import BaselineLoss, SReIDNet
from psdiff.teachers.stripes import StripesLoss, StripesNet

logger = logging.getLogger(__name__)


class TeacherMethod(NamedTuple):
    """A network, called with ``cfg``, and a loss, called with ``cfg, net=, pids=, num_pids=``."""

    net: type[TeacherNet]
    loss: type[TeacherLoss]


TEACHER_REGISTRY: dict[str, TeacherMethod] = {
    "hhcl": TeacherMethod(HHCLNet, HHCLLoss),
    "s_reid": TeacherMethod(SReIDNet, BaselineLoss),
    "mgn": TeacherMethod(MGNNet, MGNLoss),
    "agw": TeacherMethod(AGWNet, AGWLoss),
    "pplr": TeacherMethod(PPLRNet, PPLRLoss),
    "stripes": TeacherMethod(StripesNet, StripesLoss),
}
"""Rows of Table VI, and stripes.

To add one: ``TEACHER_REGISTRY["mine"] = TeacherMethod(MyNet, MyLoss)``.
"""


def _method(cfg: CfgNode) -> TeacherMethod:
    name = cfg.MODEL.PSDIFF.TEACHER.NAME
    check_choice("TEACHER.NAME", name, TEACHER_REGISTRY)
    return TEACHER_REGISTRY[name]


def build_teacher(cfg: CfgNode) -> TeacherNet:
    """Builds the network of ``cfg.MODEL.PSDIFF.TEACHER``: crops (n, 3, H, W) -> (n, D).

    Raises:
        ValueError: If the method or backbone does not exist, or they do not fit together.
    """
    return _method(cfg).net(cfg)


def build_teacher_loss(cfg: CfgNode, net: TeacherNet, pids: Tensor, num_pids: int) -> TeacherLoss:
    """Builds the loss of a network.

    Args:
        cfg: Config with ``MODEL.PSDIFF.TEACHER``.
        net: Network of :func:`build_teacher`.
        pids: Person ids (M,) int64 of all training crops, 0 to ``num_pids`` - 1 or unlabeled.
        num_pids: Number of training identities.

    Raises:
        ValueError: If a person id is out of range.
    """
    if len(pids) and not UNLABELED_PID <= pids.min() <= pids.max() < num_pids:
        raise ValueError(
            f"The person ids of the training set range from {pids.min()} to {pids.max()}, but its "
            f"metadata has num_pids {num_pids}; ids must be 0 to {num_pids - 1}, or "
            f"{UNLABELED_PID} for unlabeled persons. Check how DATASETS.TRAIN is registered."
        )
    return _method(cfg).loss(cfg, net=net, pids=pids, num_pids=num_pids)


def load_trained_teacher(cfg: CfgNode) -> TeacherNet:
    """Builds the teacher of ``MODEL.PSDIFF.TEACHER.WEIGHTS`` in eval mode on the config's device.

    Raises:
        ValueError: If no weights are given, or they do not fit the config.
        FileNotFoundError: If the file does not exist.
    """
    weights = cfg.MODEL.PSDIFF.TEACHER.WEIGHTS
    if not weights:
        raise ValueError(
            "MODEL.PSDIFF.TEACHER.WEIGHTS is empty; set it to the file written by "
            f"train_teacher.py, for example {teacher_folder(cfg)}/{WEIGHTS_FILE}."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS = ""  # all weights come from the one file
    net = build_teacher(cfg)
    net.load(weights)
    trained_on = (read_source(weights) or {}).get("dataset", "")
    if trained_on and trained_on not in cfg.DATASETS.TRAIN:
        logger.warning(
            "The teacher '%s' was trained on '%s'; DATASETS.TRAIN is %s.",
            weights, trained_on, cfg.DATASETS.TRAIN,
        )  # fmt: skip
    return net.to(cfg.MODEL.DEVICE).eval()
