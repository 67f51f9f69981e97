#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Searches with a teacher's embeddings of the ground-truth boxes: what re-ID alone achieves.

    python projects/PSDiff/tools/evaluate_teacher.py \\
        --config-file configs/PSDiff/psdiff_r50_fpn_prw.yaml \\
        OUTPUT_DIR output/teacher/hhcl_prw_train \\
        MODEL.PSDIFF.TEACHER.WEIGHTS output/teacher/hhcl_prw_train/teacher.safetensors

Detections are the true boxes with score 1, scored by the evaluator of train_net.py, so the search
figures bound what PSDiff can reach with this teacher. Results: <OUTPUT_DIR>/inference_teacher.
"""

# isort: off
from person_search.cli import quiet_libraries  # noqa: F401  first: imports below stay quiet
# isort: on

import argparse
import os
import sys

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import print_csv_format

import person_search.data  # noqa: F401  registers the data sets
from person_search.cli import run_program
from person_search.evaluation import PersonSearchEvaluator
from psdiff.teachers.cli import argument_parser, load_trained_teacher, run_script
from psdiff.teachers.evaluate import embed_test_set, evaluate_on_ground_truth


def work(cfg: CfgNode, args: argparse.Namespace) -> None:
    net = load_trained_teacher(cfg)
    for name in cfg.DATASETS.TEST:
        records = DatasetCatalog.get(name)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_teacher")
        evaluator = PersonSearchEvaluator(cfg, name, output_dir=folder)
        feats = embed_test_set(net, records, cfg)
        print_csv_format(evaluate_on_ground_truth(evaluator, records, feats))


if __name__ == "__main__":
    sys.exit(run_script(run_program, argument_parser(__doc__), work))
