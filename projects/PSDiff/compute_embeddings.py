#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the teacher's embedding of every training box to MODEL.PSDIFF.TEACHER.EMBEDDINGS.

    python projects/PSDiff/compute_embeddings.py --config-file configs/PSDiff/<name>.yaml \\
        MODEL.PSDIFF.TEACHER.WEIGHTS output/teacher/teacher.safetensors
"""

import sys

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from psdiff.teachers.cli import run_script
from psdiff.teachers.embeddings import TeacherEmbeddings
from psdiff.teachers.reid_net import TeacherNet
from psdiff.teachers.train import embed_boxes


def work(cfg: CfgNode) -> None:
    target, weights = cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS, cfg.MODEL.PSDIFF.TEACHER.WEIGHTS
    if not target or not weights:
        raise ValueError(
            "set MODEL.PSDIFF.TEACHER.WEIGHTS (file of train_teacher.py) and "
            "MODEL.PSDIFF.TEACHER.EMBEDDINGS (file to be written) in the config or as overrides."
        )
    net = TeacherNet(cfg).to(cfg.MODEL.DEVICE).eval()
    net.load(weights)
    name = cfg.DATASETS.TRAIN[0]
    records = DatasetCatalog.get(name)
    feats = embed_boxes(net, records, cfg)
    TeacherEmbeddings.save(target, name, records, feats, net.weights_hash())
    print(f"{len(feats)} boxes of {name} -> {target}")


if __name__ == "__main__":
    sys.exit(run_script(__doc__.splitlines()[0], work))
