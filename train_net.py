#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains or evaluates a person search model.

one GPU           train_net.py --config-file configs/PSDiff/psdiff_r50_fpn_prw.yaml
eight GPUs        … --num-gpus 8
CPU               … --num-gpus 0 [--num-processes 2]
continue          … --resume
evaluate          … --eval-only MODEL.WEIGHTS output/psdiff_r50_fpn_prw/model_final.pth
change a setting  … SOLVER.BASE_LR 0.001 OUTPUT_DIR output/try      after all options

An evaluation with other settings or weights than the training's writes into OUTPUT_DIR/eval/.
"""

# isort: off
from person_search.cli import quiet_libraries  # noqa: F401  first: imports below stay quiet
# isort: on

import argparse
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from person_search.config import default_config, project_names
from person_search.data import check_training_files
from person_search.engine import (
    PersonSearchTrainer,
    argument_parser,
    check_test_sets,
    evaluation_config,
    friendly_errors,
    launch,
    load_average,
    merge_config,
    resolve_num_pids,
    setup_run,
    write_config,
)
from person_search.utils.backend import check_backend


def setup(args: argparse.Namespace) -> CfgNode:
    """Returns the complete, frozen config, and sets up logging, seeds and the output folder."""
    cfg = default_config()  # also registers the models of all installed projects
    merge_config(cfg, args)
    if not args.eval_only:
        device = ["--num-gpus", "0"] if args.num_gpus == 0 else []
        check_training_files(cfg, ["--config-file", args.config_file, *device, *(args.opts or ())])
    cfg = resolve_num_pids(cfg, need_data=not args.eval_only)
    if args.eval_only:
        cfg = evaluation_config(cfg, resume=args.resume, untrained=args.untrained)
    elif args.untrained:
        raise ValueError(
            "--untrained goes with --eval-only; a training starts without weights by "
            'MODEL.WEIGHTS "".'
        )
    cfg.freeze()
    setup_run(cfg, args)
    for name in ("person_search", *project_names()):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    return cfg


def evaluate(cfg: CfgNode, *, averaged: bool) -> dict[str, Any]:
    """Evaluates MODEL.WEIGHTS; of a training checkpoint the average, if there is one (SOLVER.EMA).

    Args:
        cfg: of :func:`evaluation_config`; empty weights are meant.
        averaged: the weights are a checkpoint to go on from.
    """
    check_test_sets(cfg, lambda name: PersonSearchTrainer.build_evaluator(cfg, name))
    model = PersonSearchTrainer.build_model(cfg)
    checkpointer = PersonSearchTrainer.build_checkpointer(cfg, model)
    rest = checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[], need_whole=True)
    if averaged and cfg.SOLVER.EMA.ENABLED:
        load_average(model, rest)
    write_config(cfg, replace=False)
    results = PersonSearchTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args: argparse.Namespace) -> None:
    """Runs in every process."""
    with friendly_errors(args.traceback):
        cfg = setup(args)
        if args.eval_only:
            evaluate(cfg, averaged=args.resume)
            return
        trainer = PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        write_config(cfg, replace=True)  # a run that ended before this has changed no record
        trainer.train()


if __name__ == "__main__":
    args = argument_parser().parse_args()
    with friendly_errors(args.traceback):
        check_backend()
        launch(
            main,
            num_gpus=args.num_gpus,
            num_processes=args.num_processes,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
