#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains PSDiff's teacher on the training boxes; writes <OUTPUT_DIR>/teacher.safetensors.

python projects/PSDiff/train_teacher.py --config-file configs/PSDiff/<name>.yaml [KEY VALUE ...]
"""

from detectron2.data import DatasetCatalog

from person_search.data import get_num_pids
from psdiff.teachers.cli import parse_config
from psdiff.teachers.train import train_teacher

if __name__ == "__main__":
    cfg = parse_config(__doc__.splitlines()[0])
    name = cfg.DATASETS.TRAIN[0]
    train_teacher(cfg, DatasetCatalog.get(name), get_num_pids(name))
