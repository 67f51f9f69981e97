#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the small weights that `make demo` starts from: 35 minutes on 2 CPU cores.

    python projects/PSDiff/tools/make_demo_weights.py

Renders the data set of the demo, trains the teacher and then PSDiff on its training split, and
writes projects/PSDiff/weights/{teacher,psdiff}_slim_synthetic.safetensors as float16. The test
split contains other persons and is not used.
"""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program

TEACHER_SEED = 1
# Constant learning rate: the demo runs the part of the training with lower rates.
SCHEDULE = (
    "SOLVER.BASE_LR 0.001 SOLVER.WARMUP_ITERS 50 SOLVER.MAX_ITER 3000 SOLVER.STEPS () "
    "SOLVER.EMA.ENABLED False"
)


def save_half(source: Path, path: Path) -> None:
    """Writes the weights of a file with floating-point tensors as float16, and its model card."""
    from person_search.utils.weight_files import read_card, read_weights, save_weights

    weights = read_weights(source)
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_weights(path, half, read_card(source))
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def work(args: argparse.Namespace) -> None:
    """Runs the commands and converts the weights."""
    demo = runpy.run_path(str(Path(__file__).resolve().parents[3] / "tools" / "demo.py"))
    names = ("CONFIG", "DATA_OPTIONS", "PSDIFF_WEIGHTS", "ROOT", "TEACHER_WEIGHTS", "Steps")
    CONFIG, DATA_OPTIONS, PSDIFF_WEIGHTS, ROOT, TEACHER_WEIGHTS, Steps = (demo[n] for n in names)
    os.chdir(ROOT)
    out, programs = args.output, "projects/PSDiff/tools"
    keys = (
        f"--config-file {CONFIG} MODEL.PSDIFF.TEACHER.EMBEDDINGS {out}/embeddings.safetensors "
        f"OUTPUT_DIR {out}"
    )
    steps = Steps(args.datasets.resolve())
    for name, title, command in (
        (
            "data",
            "Render the data set",
            f"-m person_search.data.synthetic --root {args.datasets}/synthetic {DATA_OPTIONS}",
        ),
        (
            "teacher",
            "Train the teacher",
            f"{programs}/train_teacher.py {keys} SEED {TEACHER_SEED} "
            'MODEL.PSDIFF.TEACHER.WEIGHTS ""',
        ),
        (
            "embeddings",
            "Embed the training persons",
            f"{programs}/compute_embeddings.py {keys} "
            f"MODEL.PSDIFF.TEACHER.WEIGHTS {out}/teacher.safetensors",
        ),
        (
            "training",
            "Train PSDiff with the backbone of the teacher",
            f"train_net.py --num-gpus 0 {keys}/psdiff MODEL.WEIGHTS {out}/backbone.pth {SCHEDULE}",
        ),
    ):
        steps.run(name, title, command)
    save_half(out / "teacher.safetensors", TEACHER_WEIGHTS)
    save_half(out / "psdiff" / "model_final.pth", PSDIFF_WEIGHTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = program_parser(__doc__)
    for option, default, text in (
        ("--output", "output/demo_weights", "folder of the trainings"),
        ("--datasets", "datasets", "folder of the data sets"),
    ):
        parser.add_argument(
            option, type=Path, default=Path(default), metavar="DIR",
            help=f"{text} (default: %(default)s)",
        )  # fmt: skip
    return run_program(work, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
