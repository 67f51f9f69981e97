#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the teacher's embedding of every training box to MODEL.PSDIFF.TEACHER.EMBEDDINGS.

    python projects/PSDiff/tools/compute_embeddings.py \\
        --config-file configs/PSDiff/psdiff_r50_fpn_prw.yaml \\
        OUTPUT_DIR output/teacher/hhcl_prw_train \\
        MODEL.PSDIFF.TEACHER.WEIGHTS output/teacher/hhcl_prw_train/teacher.safetensors

Interrupted or killed, the same command goes on where it was; the file appears when it is whole.
"""

# isort: off
from person_search.cli import quiet_libraries  # noqa: F401  first: imports below stay quiet
# isort: on

import argparse
import sys

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from person_search.cli import run_program
from psdiff.teachers.advice import embeddings_file
from psdiff.teachers.cli import argument_parser, load_trained_teacher, run_script, training_set
from psdiff.teachers.embed import compute_embeddings


def work(cfg: CfgNode, args: argparse.Namespace) -> None:
    target = cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS
    if not target:
        raise ValueError(
            "MODEL.PSDIFF.TEACHER.EMBEDDINGS is empty; set it to the file that is to be written, "
            f"such as {embeddings_file(cfg)}."
        )
    net = load_trained_teacher(cfg)
    name = training_set(cfg)
    count = compute_embeddings(net, name, DatasetCatalog.get(name), cfg)
    print(f"{count} boxes of {name} -> {target}")


if __name__ == "__main__":
    sys.exit(run_script(run_program, argument_parser(__doc__), work))
