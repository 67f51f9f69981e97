#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains PSDiff's teacher on the training boxes; writes <OUTPUT_DIR>/teacher.safetensors.

    python projects/PSDiff/tools/train_teacher.py --config-file configs/PSDiff/psdiff_r50_fpn_prw.yaml \\
        OUTPUT_DIR output/teacher/hhcl_prw_train

Each teacher has a folder of its own: OUTPUT_DIR output/teacher/<teacher>_<training set>; what is
there of another data set or method is not overwritten. It trains on one device. Checkpoints lie in
<OUTPUT_DIR>/teacher_checkpoints. Ctrl-C or SIGTERM lets the iteration finish and writes one more;
--resume goes on from the last, bit for bit on a CPU.
"""

# isort: off
from person_search.cli import quiet_libraries  # noqa: F401  first: imports below stay quiet
# isort: on

import argparse
import os
import sys

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from person_search.cli import run_program
from person_search.data import get_num_pids
from person_search.engine import AtomicCheckpointer, ResumableCheckpointer
from person_search.utils.files import write_atomically
from psdiff.teachers.cli import argument_parser, run_script, training_set
from psdiff.teachers.embeddings import describe_teacher
from psdiff.teachers.folder import CHECKPOINTS, check_folder, mark_folder
from psdiff.teachers.trainer import TeacherTrainer


def train(cfg: CfgNode, resume: bool) -> str:
    """Trains the teacher of the config; returns the path of its weights."""
    name = training_set(cfg)
    records = DatasetCatalog.get(name)
    source = describe_teacher(cfg, name, records)
    check_folder(cfg, source)
    trainer = TeacherTrainer(cfg, records, get_num_pids(name))
    mark_folder(cfg, source)
    write_atomically(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump().encode())
    folder = os.path.join(cfg.OUTPUT_DIR, CHECKPOINTS)
    checkpointer = AtomicCheckpointer(
        trainer.model, folder, allow_partial=cfg.MODEL.ALLOW_PARTIAL_LOAD, trainer=trainer
    )
    period = cfg.MODEL.PSDIFF.TEACHER.CHECKPOINT_EPOCHS * trainer.per_epoch
    trainer.register_hooks(
        [ResumableCheckpointer(checkpointer, period, cfg.SOLVER.CHECKPOINT_ON_SIGNAL)]
    )
    found = checkpointer.find_resumable() if resume else ""
    if found:
        checkpointer.load(found)
        trainer.continue_from(trainer.iter + 1)
    trainer.run()
    return trainer.export()


def work(cfg: CfgNode, args: argparse.Namespace) -> None:
    print(f"teacher -> {train(cfg, args.resume)}")


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    sys.exit(run_script(run_program, parser, work))
