#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the peak memory of inference and training on a CPU, optimized and eager.

    OMP_NUM_THREADS=1 python benchmarks/benchmark_memory.py

Every variant runs twice in a process of its own, with random weights. "process" is the largest
resident size of that process: the libraries (about 0.5 GB), weights, and what the C library keeps
of freed memory. "beyond weights" is what PyTorch allocates during a third run, and does not depend
on the C library. In training, weights and the state of the optimizer exist before.

Inference of DiffPS includes the frozen part: "eager" and "float32" compute it in float32 with
Winograd's convolutions, "bfloat16" in bfloat16. Layers of one shape share their weights there
(random_diffusion.py), so "process" is less than with the weights of Stable Diffusion.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program

CONFIG = Path(__file__).parents[1] / "configs" / "PSDiff" / "psdiff_r50_fpn_prw.yaml"
VARIANTS = {
    "PSDiff, inference": ("eager", "float32", "bfloat16"),
    "PSDiff, training": ("float32", "bfloat16"),
    "DiffPS, inference": ("eager", "float32", "bfloat16"),
    "DiffPS, training": ("float32", "bfloat16"),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add(
        "--config-file", default=str(CONFIG), metavar="FILE", help="config of PSDiff (default: PRW)"
    )
    add("--size", type=int, nargs=2, default=[768, 1344], metavar=("HEIGHT", "WIDTH"),
        help="image of PSDiff (default: 768 1344)")  # fmt: skip
    add("--side", type=int, default=512, help="side of the image of DiffPS (default: 512)")
    add("--family", default="sd21", help="shape of the frozen model, or tiny (default: sd21)")
    add("--parts", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="PART",
        help=f"what to measure (default: all of {', '.join(map(repr, VARIANTS))})")  # fmt: skip
    add("--variant", help=argparse.SUPPRESS)  # of the process that is measured
    return parser.parse_args(argv)


def build_run(part: str, variant: str, args: argparse.Namespace) -> Callable[[], object]:
    """Builds a model; returns a function that runs it on a random image."""
    import torch
    from benchmark_diffps import build_cfg, scaled_to_area, training_input
    from benchmark_diffps import parse_args as diffps_args
    from benchmark_psdiff import training_loss
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from person_search.config import build_config
    from person_search.engine import build_optimizer
    from person_search.modeling.optimize import optimize_for_inference

    torch.manual_seed(0)
    method, _, work = part.partition(", ")
    low = variant == "bfloat16"
    if method == "PSDiff":
        cfg = build_config(args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
        image = torch.randint(256, (3, *args.size), dtype=torch.uint8)
        precision = variant
    else:
        words = ["--dtype", "bfloat16" if low else "float32", "--device", "cpu"]
        words += ["--family", args.family, "MODEL.DIFFPS.SFAN.PROJECT", str(args.family == "tiny")]
        cfg = build_cfg(diffps_args(words))
        cfg = scaled_to_area(cfg, args.side)
        image = training_input(args.side)["image"]
        precision = "eager" if variant == "eager" else "float32"
    model = build_model(cfg)
    if work == "inference":
        model = optimize_for_inference(model.eval(), precision)

        def infer() -> None:
            with torch.no_grad():
                model([{"image": image}])

        return infer
    model.train()
    optimizer = build_optimizer(cfg, model)
    dtype = torch.bfloat16 if low else torch.float32
    batch = argparse.Namespace(size=args.size, batch=1)

    def train() -> None:
        with EventStorage():
            if method == "PSDiff":
                loss = training_loss(model, batch, dtype)
            else:
                with torch.autocast("cpu", dtype, enabled=low):
                    loss = sum(model([training_input(args.side)]).values())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def measure(part: str, variant: str, args: argparse.Namespace) -> dict[str, float]:
    """Returns the peak memory of this process and beyond the weights, in MB."""
    from peak_memory import peak_bytes

    run = build_run(part, variant, args)
    run()
    run()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before the profiler's own
    return {"process": kilobytes / 1e3, "beyond weights": peak_bytes(run) / 1e6}


def benchmark(args: argparse.Namespace) -> None:
    """Measures each variant in a process, and prints the table."""
    from rich.console import Console
    from rich.table import Table

    if args.variant:
        print(json.dumps(measure(args.parts[0], args.variant, args)))
        return
    table = Table(title="Peak memory on a CPU in MB, and as a multiple of the first line's")
    for name in ("", "process", "", "beyond weights", ""):
        table.add_column(name, justify="right" if name or table.columns else "left")
    for part in args.parts:
        first: dict[str, float] = {}
        for variant in VARIANTS[part]:
            command = [sys.executable, __file__, "--config-file", args.config_file]
            command += ["--size", *map(str, args.size), "--side", str(args.side)]
            command += ["--family", args.family, "--parts", part, "--variant", variant]
            quiet = os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"}
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=quiet)
            values = json.loads(child.stdout.splitlines()[-1])
            first = first or values
            cells = [(f"{mb:.0f}", f"{mb / first[key]:.2f}") for key, mb in values.items()]
            table.add_row(f"{part}, {variant}", *(text for pair in cells for text in pair))
    Console(width=100, highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_program(benchmark, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
