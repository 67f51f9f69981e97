# SPDX-License-Identifier: Apache-2.0
"""What the teacher scripts share: arguments, config, log. Errors are those of all programs."""

import argparse
import logging
import os
import sys
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from person_search.config import check_device, default_config, merge_into
from person_search.data import register_config_datasets
from psdiff.teachers.advice import WEIGHTS_FILE, teacher_folder
from psdiff.teachers.folder import read_source
from psdiff.teachers.registry import build_teacher
from psdiff.teachers.reid_net import TeacherNet

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit status of a program that Ctrl-C has ended."""


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of what the scripts have in common; they may add to it."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="a config of PSDiff, configs/PSDiff/")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="1 (default): the device of the config; 0: the CPU. Teachers run on one device",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE pairs")
    return parser


def run_script(
    run_program: Callable[..., int],
    parser: argparse.ArgumentParser,
    work: Callable[[CfgNode, argparse.Namespace], None],
) -> int:
    """Reads arguments and config, sets up log and seed, and calls ``work``.

    Args:
        run_program: that of :mod:`person_search.cli`, which only programs import.

    Returns:
        Exit status. Wrong data, config or weights end the program with one message and status 2,
        as in train_net.py.
    """
    args = parser.parse_args()
    try:
        return run_program(lambda args: work(_setup(args), args), args, log=False)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _setup(args: argparse.Namespace) -> CfgNode:
    if args.num_gpus not in (0, 1):
        raise ValueError(
            f"--num-gpus is {args.num_gpus}, but a teacher runs on one device: give 1, or 0 for "
            "the CPU. PSDiff itself (train_net.py) trains on several."
        )
    cfg = default_config()
    merge_into(cfg, args.config_file, args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    check_device(cfg, remedy="--num-gpus 0 (or MODEL.DEVICE cpu)")
    cfg.freeze()
    register_config_datasets(cfg)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    for name in ("detectron2", "fvcore", "psdiff", "person_search"):
        setup_logger(cfg.OUTPUT_DIR, name=name, abbrev_name=name)
    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
    return cfg


def training_set(cfg: CfgNode) -> str:
    """Returns the name of the one training set that a teacher belongs to."""
    if len(cfg.DATASETS.TRAIN) != 1:
        raise ValueError(
            f"A teacher belongs to one training set, but DATASETS.TRAIN is {cfg.DATASETS.TRAIN}."
        )
    return cfg.DATASETS.TRAIN[0]


def load_trained_teacher(cfg: CfgNode) -> TeacherNet:
    """The teacher of ``cfg.MODEL.PSDIFF.TEACHER.WEIGHTS`` in eval mode, on the config's device.

    Raises:
        ValueError: no weights are given, or they are of another teacher.
        FileNotFoundError: no such file.
    """
    weights = cfg.MODEL.PSDIFF.TEACHER.WEIGHTS
    if not weights:
        raise ValueError(
            "MODEL.PSDIFF.TEACHER.WEIGHTS is empty; set it to the file that train_teacher.py "
            f"wrote, such as {teacher_folder(cfg)}/{WEIGHTS_FILE}."
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
