# SPDX-License-Identifier: Apache-2.0
"""What the teacher scripts share: arguments, config, log, and errors in one line."""

import argparse
import os
import sys
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from person_search.config import build_config
from person_search.data import register_config_datasets
from psdiff.teachers.registry import build_teacher
from psdiff.teachers.reid_net import TeacherNet

INTERRUPTED = 130
"""Exit status of a program that Ctrl-C has ended."""


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser of ``--config-file`` and KEY VALUE overrides; scripts may add to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, help="a config of PSDiff, configs/PSDiff/")
    parser.add_argument("opts", nargs="*", help="config overrides: KEY VALUE pairs")
    return parser


def run_script(
    parser: argparse.ArgumentParser, work: Callable[[CfgNode, argparse.Namespace], None]
) -> int:
    """Reads arguments and config, sets up log and seed, and calls ``work``.

    Returns:
        Exit status: 2, after one line on stderr, for wrong data, config or weights.
    """
    args = parser.parse_args()
    try:
        cfg = build_config(args.config_file, args.opts)
        register_config_datasets(cfg)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        for name in ("detectron2", "fvcore", "psdiff", "person_search"):
            setup_logger(cfg.OUTPUT_DIR, name=name, abbrev_name=name)
        seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
        work(cfg, args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


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
            "wrote, in the config or as an override."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS = ""  # all weights come from the one file
    net = build_teacher(cfg)
    net.load(weights)
    return net.to(cfg.MODEL.DEVICE).eval()
