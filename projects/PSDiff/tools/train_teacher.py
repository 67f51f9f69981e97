#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Trains PSDiff's teacher on the training boxes; writes <OUTPUT_DIR>/teacher.safetensors.

    python projects/PSDiff/tools/train_teacher.py \
        --config-file configs/PSDiff/psdiff_r50_fpn_prw.yaml \
        OUTPUT_DIR output/teacher/hhcl_prw_train

Use a separate folder for each teacher and training set. An existing teacher of another data set or
method is not overwritten. Training runs on one device and writes checkpoints to
<OUTPUT_DIR>/teacher_checkpoints. After Ctrl-C or SIGTERM, the current iteration is finished and one
more checkpoint written; --resume continues from it, bit for bit on a CPU.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from teacher_setup import set_up, teacher_parser, training_set

from person_search.cli import run_program

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def train(cfg: "CfgNode", resume: bool) -> str:
    """Trains the teacher of the config; returns the path of its weights."""
    from detectron2.data import DatasetCatalog

    from person_search.data import get_num_pids, training_card
    from person_search.engine import AtomicCheckpointer, ResumableCheckpointer
    from person_search.utils.files import write_atomically
    from psdiff.teachers.embeddings import describe_teacher
    from psdiff.teachers.folder import CHECKPOINTS, check_folder, mark_folder
    from psdiff.teachers.trainer import TeacherTrainer

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
    checkpointer.card = training_card(cfg, f"{cfg.MODEL.PSDIFF.TEACHER.NAME} teacher")
    period = cfg.MODEL.PSDIFF.TEACHER.CHECKPOINT_EPOCHS * trainer.per_epoch
    trainer.register_hooks(
        [ResumableCheckpointer(checkpointer, period, cfg.SOLVER.CHECKPOINT_ON_SIGNAL)]
    )
    found = checkpointer.find_resumable() if resume else ""
    if found:
        checkpointer.load(found)
        trainer.continue_from(trainer.iter + 1)
    trainer.run()
    return trainer.export(checkpointer.card)


def work(args: argparse.Namespace) -> None:
    """Trains and reports the path of the weights."""
    print(f"teacher -> {train(set_up(args), args.resume)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = teacher_parser(__doc__)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint, if there is one"
    )
    hint = "--resume continues from the last checkpoint."
    return run_program(work, parser.parse_args(argv), log=False, resume_hint=hint)


if __name__ == "__main__":
    sys.exit(main())
