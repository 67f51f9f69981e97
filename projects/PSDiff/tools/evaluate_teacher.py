#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Evaluates a teacher on the ground-truth boxes of the test sets: the limit set by re-ID alone.

    python projects/PSDiff/tools/evaluate_teacher.py \
        --config-file configs/PSDiff/psdiff_r50_fpn_prw.yaml \
        OUTPUT_DIR output/teacher/hhcl_prw_train \
        MODEL.PSDIFF.TEACHER.WEIGHTS output/teacher/hhcl_prw_train/teacher.safetensors

Detections are the ground-truth boxes with score 1, evaluated as in train_net.py, so that the search
metrics bound those of PSDiff with this teacher. Results: <OUTPUT_DIR>/inference_teacher.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from teacher_setup import set_up, teacher_parser

from person_search.cli import run_program


def work(args: argparse.Namespace) -> None:
    """Evaluates the teacher on all test sets."""
    cfg = set_up(args)

    from detectron2.data import DatasetCatalog
    from detectron2.evaluation import print_csv_format

    from person_search.evaluation import PersonSearchEvaluator
    from psdiff.teachers.evaluate import embed_test_set, evaluate_on_ground_truth
    from psdiff.teachers.registry import load_trained_teacher

    net = load_trained_teacher(cfg)
    for name in cfg.DATASETS.TEST:
        records = DatasetCatalog.get(name)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_teacher")
        evaluator = PersonSearchEvaluator(cfg, name, output_dir=folder)
        feats = embed_test_set(net, records, cfg)
        print_csv_format(evaluate_on_ground_truth(evaluator, records, feats))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    return run_program(work, teacher_parser(__doc__).parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
