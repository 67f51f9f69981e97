#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Writes the teacher embedding of each training box to MODEL.PSDIFF.TEACHER.EMBEDDINGS.

    python projects/PSDiff/tools/compute_embeddings.py \
        --config-file configs/PSDiff/psdiff_r50_fpn_prw.yaml \
        OUTPUT_DIR output/teacher/hhcl_prw_train \
        MODEL.PSDIFF.TEACHER.WEIGHTS output/teacher/hhcl_prw_train/teacher.safetensors

After an interruption, the same command continues where it stopped. The file appears when it is
complete.
"""

import argparse
import sys
from collections.abc import Sequence

from teacher_setup import set_up, teacher_parser, training_set

from person_search.cli import run_program


def work(args: argparse.Namespace) -> None:
    """Loads the teacher and writes the embeddings."""
    cfg = set_up(args)

    from detectron2.data import DatasetCatalog

    from psdiff.teachers.embed import compute_embeddings
    from psdiff.teachers.folder import embeddings_file
    from psdiff.teachers.registry import load_trained_teacher

    target = cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS
    if not target:
        raise ValueError(
            "MODEL.PSDIFF.TEACHER.EMBEDDINGS is empty; set it to the file to be written, for "
            f"example {embeddings_file(cfg)}."
        )
    net = load_trained_teacher(cfg)
    name = training_set(cfg)
    count = compute_embeddings(net, name, DatasetCatalog.get(name), cfg)
    print(f"{count} boxes of {name} -> {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    hint = "The same command continues where it stopped."
    args = teacher_parser(__doc__).parse_args(argv)
    return run_program(work, args, log=False, resume_hint=hint)


if __name__ == "__main__":
    sys.exit(main())
