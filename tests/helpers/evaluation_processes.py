# SPDX-License-Identifier: Apache-2.0
"""One of two processes that evaluate a random case together; a program of test_evaluator.py.

    python -m evaluation_processes <folder> <rank>

Each process takes every second image, and writes what ``evaluate`` returned to
``<folder>/result_<rank>.json``.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from evaluation_cases import random_case, registered

from person_search.evaluation import PersonSearchEvaluator

WORLD_SIZE = 2
SEED = 11


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD_SIZE
    )
    case = random_case(SEED)
    with registered(case) as name:
        evaluator = PersonSearchEvaluator(name, score_thresh=0.5, protocols=["all", "listed"])
        evaluator.reset()
        for one in case.inputs()[rank::WORLD_SIZE]:
            evaluator.process([one], [case.output(one["image_id"])])
        results = evaluator.evaluate()
    Path(folder, f"result_{rank}.json").write_text(json.dumps(results))
    dist.barrier()  # on a busy machine, gloo aborts if one process leaves long before the other
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[2]), sys.argv[1])
