#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains or evaluates a person search model.

one GPU           train_net.py --config-file configs/PSDiff/psdiff_r50_fpn_prw.yaml
eight GPUs        … --num-gpus 8
CPU               … --num-gpus 0 [--num-processes 2]
continue          … --resume
evaluate          … --eval-only MODEL.WEIGHTS output/model_final.pth
change a setting  … SOLVER.BASE_LR 0.001 OUTPUT_DIR output/try
"""

# isort: off
import person_search.utils.quieted  # noqa: F401  first, for the imports below to be quiet
# isort: on

import argparse
import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from person_search.config import default_config, project_names
from person_search.data import check_training_files
from person_search.engine import (
    PersonSearchTrainer,
    argument_parser,
    friendly_errors,
    launch,
    load_average,
    merge_config,
    resolve_num_pids,
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
    cfg.freeze()
    default_setup(cfg, args)
    for name in ("person_search", *project_names()):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    return cfg


def evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    """Evaluates MODEL.WEIGHTS or, with ``resume``, the last checkpoint in the output folder.

    Of a checkpoint, with SOLVER.EMA.ENABLED, the average of the weights is taken.
    """
    model = PersonSearchTrainer.build_model(cfg)
    checkpointer = PersonSearchTrainer.build_checkpointer(cfg, model)
    last = checkpointer.find_resumable() if resume else ""
    weights = last or cfg.MODEL.WEIGHTS
    if not weights:
        logging.getLogger("person_search").warning("MODEL.WEIGHTS is empty: untrained weights.")
    rest = checkpointer.load(weights, checkpointables=[], need_whole=True)
    if last and cfg.SOLVER.EMA.ENABLED:
        load_average(model, rest)
    results = PersonSearchTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args: argparse.Namespace) -> None:
    """Runs in every process."""
    with friendly_errors(args.traceback):
        cfg = setup(args)
        if args.eval_only:
            evaluate(cfg, args.resume)
            return
        trainer = PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
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
