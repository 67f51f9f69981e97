#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains PSDiff's teacher on the training boxes; writes <OUTPUT_DIR>/teacher.safetensors.

    python projects/PSDiff/train_teacher.py --config-file configs/PSDiff/<name>.yaml \\
        [--resume] [KEY VALUE ...]

Checkpoints lie in <OUTPUT_DIR>/teacher_checkpoints. Ctrl-C or SIGTERM lets the iteration finish and
writes one more; --resume goes on from the last, bit for bit on a CPU.
"""

import argparse
import os
import sys

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from person_search.data import get_num_pids
from person_search.engine import AtomicCheckpointer, ResumableCheckpointer
from psdiff.teachers.cli import argument_parser, run_script, training_set
from psdiff.teachers.trainer import TeacherTrainer


def train(cfg: CfgNode, resume: bool) -> str:
    """Trains the teacher of the config; returns the path of its weights."""
    name = training_set(cfg)
    trainer = TeacherTrainer(cfg, DatasetCatalog.get(name), get_num_pids(name))
    folder = os.path.join(cfg.OUTPUT_DIR, "teacher_checkpoints")
    os.makedirs(folder, exist_ok=True)
    checkpointer = AtomicCheckpointer(trainer.model, folder, trainer=trainer)
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
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    sys.exit(run_script(parser, work))
