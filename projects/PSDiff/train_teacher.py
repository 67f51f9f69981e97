#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains PSDiff's teacher on the training boxes; writes <OUTPUT_DIR>/teacher.safetensors.

python projects/PSDiff/train_teacher.py --config-file configs/PSDiff/<name>.yaml [KEY VALUE ...]
"""

import sys

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from person_search.data import get_num_pids
from psdiff.teachers.cli import run_script
from psdiff.teachers.train import train_teacher


def work(cfg: CfgNode) -> None:
    name = cfg.DATASETS.TRAIN[0]
    train_teacher(cfg, DatasetCatalog.get(name), get_num_pids(name))


if __name__ == "__main__":
    sys.exit(run_script(__doc__.splitlines()[0], work))
