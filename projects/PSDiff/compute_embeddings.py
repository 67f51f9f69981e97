#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the teacher's embedding of every training box to MODEL.PSDIFF.TEACHER.EMBEDDINGS.

    python projects/PSDiff/compute_embeddings.py --config-file configs/PSDiff/<name>.yaml \\
        MODEL.PSDIFF.TEACHER.WEIGHTS output/teacher/teacher.safetensors
"""

from detectron2.data import DatasetCatalog

from psdiff.teachers.cli import parse_config
from psdiff.teachers.embeddings import TeacherEmbeddings
from psdiff.teachers.reid_net import TeacherNet
from psdiff.teachers.train import embed_boxes

if __name__ == "__main__":
    cfg = parse_config(__doc__.splitlines()[0])
    target, weights = cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS, cfg.MODEL.PSDIFF.TEACHER.WEIGHTS
    if not target or not weights:
        raise SystemExit(
            "Set MODEL.PSDIFF.TEACHER.WEIGHTS (file of train_teacher.py) and "
            "MODEL.PSDIFF.TEACHER.EMBEDDINGS (file to be written) in the config or as overrides."
        )
    net = TeacherNet(cfg).to(cfg.MODEL.DEVICE).eval()
    net.load(weights)
    name = cfg.DATASETS.TRAIN[0]
    records = DatasetCatalog.get(name)
    feats = embed_boxes(net, records, cfg)
    TeacherEmbeddings.save(target, name, records, feats, net.weights_hash())
    print(f"{len(feats)} boxes of {name} -> {target}")
