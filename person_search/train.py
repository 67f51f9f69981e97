# SPDX-License-Identifier: Apache-2.0
"""Trains or evaluates a person search model.

one GPU           person-search-train --config-file PSDiff/psdiff_r50_fpn_prw.yaml
eight GPUs        … --num-gpus 8
CPU               … --num-gpus 0 [--num-processes 2]
continue          … --resume
evaluate          … --eval-only MODEL.WEIGHTS output/psdiff_r50_fpn_prw/model_final.pth
change a setting  … SOLVER.BASE_LR 0.001 OUTPUT_DIR output/try      after all options

In a checkout, python train_net.py is the same program. torchrun and srun start it, too
(docs/clusters.md). An evaluation with other settings or weights than those of the training writes
into OUTPUT_DIR/eval/.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from person_search.cli import add_launch_options, program_parser, quiet_libraries, run_program

if TYPE_CHECKING:
    from detectron2.config import CfgNode

quiet_libraries()  # also in the processes of a run, which import this file


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line: the options of Detectron2 and two more."""
    parser = program_parser(__doc__, config=True)
    add = parser.add_argument
    add("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    add("--untrained", action="store_true", help="with --eval-only: evaluate random weights")
    add_launch_options(parser, num_gpus=1)
    return parser.parse_args(argv)


def setup(args: argparse.Namespace) -> "CfgNode":
    """Returns the complete, frozen config; sets up logging, seeds and the output folder."""
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from person_search import config, data, engine

    cfg = config.default_config()  # also registers the models of all installed projects
    config.merge_run_config(cfg, args)
    if not args.eval_only:
        device = ["--num-gpus", "0"] if args.num_gpus == 0 else []
        data.check_training_files(cfg, ["--config-file", args.config_file, *device, *args.opts])
    cfg = engine.resolve_num_pids(cfg, need_data=not args.eval_only)
    if args.eval_only:
        cfg = engine.evaluation_config(cfg, resume=args.resume, untrained=args.untrained)
    elif args.untrained:
        raise ValueError('--untrained requires --eval-only; to train so, set MODEL.WEIGHTS "".')
    cfg.freeze()
    engine.setup_run(cfg, args)
    for name in ("person_search", *config.project_names()):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    return cfg


def evaluate(cfg: "CfgNode", *, averaged: bool) -> None:
    """Evaluates MODEL.WEIGHTS, or the average in that checkpoint (SOLVER.EMA) if ``averaged``."""
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from person_search import engine

    trainer = engine.PersonSearchTrainer
    engine.check_test_sets(cfg, lambda name: trainer.build_evaluator(cfg, name))
    model = trainer.build_model(cfg)
    checkpointer = trainer.build_checkpointer(cfg, model)
    rest = {}
    if cfg.MODEL.WEIGHTS:
        rest = checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[], need_whole=True)
    if averaged and cfg.SOLVER.EMA.ENABLED:
        engine.load_average(model, rest)
    engine.write_config(cfg, replace=False)
    results = trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)


def run(args: argparse.Namespace) -> None:
    """Trains or evaluates; called in each process."""
    from detectron2.utils import comm

    from person_search import engine

    with engine.friendly_errors(args.traceback):
        cfg = setup(args)
        if args.eval_only:
            evaluate(cfg, averaged=args.resume)
            return
        if not args.resume and comm.is_main_process():
            engine.forget_runs(cfg)
        trainer = engine.PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        engine.write_config(cfg, replace=True)  # only now: a run that fails before changes nothing
        trainer.train()


def launch(args: argparse.Namespace) -> None:
    """Calls :func:`run` in each process."""
    from person_search import engine

    engine.launch_program(run, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return run_program(launch, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
