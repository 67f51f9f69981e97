# SPDX-License-Identifier: Apache-2.0
"""Command line and set-up of the three teacher programs.

Not a program; ``train_teacher.py``, ``compute_embeddings.py`` and ``evaluate_teacher.py`` are.
"""

import argparse
import os
from typing import TYPE_CHECKING

from person_search.cli import program_parser

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def teacher_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options of all teacher programs."""
    parser = program_parser(description, config=True)
    parser.add_argument(
        "--num-gpus", type=int, default=1, choices=(0, 1),
        help="1: run on MODEL.DEVICE of the config; 0: run on the CPU (default: %(default)s)",
    )  # fmt: skip
    return parser


def set_up(args: argparse.Namespace) -> "CfgNode":
    """Builds the config, registers its data sets, and sets up logging and seed."""
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.logger import setup_logger

    from person_search.config import check_device, default_config, merge_into
    from person_search.data import register_config_datasets

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


def training_set(cfg: "CfgNode") -> str:
    """Returns the name of the training set, of which a teacher has exactly one."""
    if len(cfg.DATASETS.TRAIN) != 1:
        raise ValueError(
            "A teacher is trained on one data set, but DATASETS.TRAIN is "
            f"{tuple(cfg.DATASETS.TRAIN)}."
        )
    return cfg.DATASETS.TRAIN[0]
