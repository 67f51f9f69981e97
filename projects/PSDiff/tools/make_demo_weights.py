#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the small weights that `make demo` starts from, from nothing: 35 minutes on 2 CPU cores.

    python projects/PSDiff/tools/make_demo_weights.py [--output output/demo_weights]

It draws the demo's data set, trains the teacher and then PSDiff on its *training* split only, and
writes projects/PSDiff/weights/{teacher,psdiff}_slim_synthetic.safetensors as float16. The test
split of that set shows other people, and is not looked at.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from demo import CONFIG, DATA_OPTIONS, PSDIFF_WEIGHTS, ROOT, TEACHER_WEIGHTS, Steps
from safetensors.torch import save_file

from person_search.utils.weight_files import read_weights

TEACHER_SEED = 1
# The learning rate never comes down: that part of the training is left to the demo.
SCHEDULE = (
    "SOLVER.BASE_LR 0.001 SOLVER.WARMUP_ITERS 50 SOLVER.MAX_ITER 3000 SOLVER.STEPS () "
    "SOLVER.EMA.ENABLED False"
)


def save_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes floats as float16; counters of batch norm keep their type."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in half.items()}, path)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/demo_weights"))
    parser.add_argument("--datasets", type=Path, default=Path("datasets"))
    args = parser.parse_args()
    os.chdir(ROOT)
    steps, out = Steps(args.datasets.resolve()), args.output
    config = f"--config-file {CONFIG}"
    keys = f"MODEL.PSDIFF.TEACHER.EMBEDDINGS {out}/embeddings.safetensors"
    steps.run(
        "data",
        "Draw the data set",
        f"-m person_search.data.synthetic --root {args.datasets}/synthetic {DATA_OPTIONS}",
    )
    steps.run(
        "teacher",
        "Train the teacher",
        f"projects/PSDiff/tools/train_teacher.py {config} OUTPUT_DIR {out} SEED {TEACHER_SEED} "
        'MODEL.PSDIFF.TEACHER.WEIGHTS ""',
    )
    steps.run(
        "embeddings",
        "Embed the training persons",
        f"projects/PSDiff/tools/compute_embeddings.py {config} {keys} OUTPUT_DIR {out} "
        f"MODEL.PSDIFF.TEACHER.WEIGHTS {out}/teacher.safetensors",
    )
    steps.run(
        "training",
        "Train PSDiff, its backbone from the teacher's",
        f"train_net.py --num-gpus 0 {config} {keys} OUTPUT_DIR {out}/psdiff "
        f"MODEL.WEIGHTS {out}/backbone.pth {SCHEDULE}",
    )
    save_half(read_weights(out / "teacher.safetensors"), TEACHER_WEIGHTS)
    save_half(read_weights(out / "psdiff" / "model_final.pth"), PSDIFF_WEIGHTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
