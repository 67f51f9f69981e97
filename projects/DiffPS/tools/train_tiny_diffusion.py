#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny Stable Diffusion model on synthetic scenes: a prior for DiffPS without a download.

    python projects/DiffPS/tools/train_tiny_diffusion.py output/tiny_prior
    python projects/DiffPS/tools/train_tiny_diffusion.py output/tiny_prior --resume --time-budget 20

Writes a folder in diffusers format. Scenes, latents and checkpoints are kept in <folder>_work;
Ctrl-C loses at most 500 iterations. benchmarks/measure_pointing.py measures what the attention of
the result finds.
"""

import argparse
import sys
from pathlib import Path

from person_search.cli import program_parser, run_program


def parse_args() -> argparse.Namespace:
    """Parses the command line; the defaults are those of ``PriorOptions``."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="folder to write the model to")
    add("--work", type=Path, metavar="FOLDER", help="folder of scenes, latents and checkpoints")
    add("--resume", action="store_true", help="resume from the last checkpoint")
    add("--time-budget", type=float, default=0.0, metavar="MINUTES",
        help="stop after this time and write the model (default: 0, no limit)")  # fmt: skip
    add("--seed", type=int, help="seed of weights and batches (default: 0)")
    add("--vae-iterations", type=int, help="iterations of the VAE (default: 3000)")
    add("--iterations", type=int, help="iterations of UNet and text encoder (default: 4500)")
    add("--scenes", type=int, help="number of scenes (default: 2000)")
    add("--scenes-seed", type=int, help="seed of places and persons (default: 7000)")
    add("--device", help="torch device (default: cuda if available, otherwise cpu)")
    add("--samples", type=Path, metavar="PNG", help="also write images generated from captions")
    add("--float32", action="store_true", help="store weights as float32 instead of float16")
    add("--quiet", action="store_true", help="print log lines without progress bars")
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    """Trains the model and writes its folder."""
    import torch
    from detectron2.utils.logger import setup_logger

    from diffps.prior.recipe import PriorOptions, PriorTraining, draw_samples
    from diffps.prior.scenes import SceneOptions

    setup_logger(name="diffps", abbrev_name="diffps")
    scenes = {"count": args.scenes, "seed": args.scenes_seed}
    options = {name: getattr(args, name) for name in ("seed", "vae_iterations", "iterations")}
    training = PriorTraining(
        PriorOptions(scenes=SceneOptions(**_given(scenes)), **_given(options)),
        args.work or args.folder.with_name(args.folder.name + "_work"),
        args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        resume=args.resume,
        minutes=args.time_budget,
        progress=not args.quiet,
    )
    finished = training.run()
    training.save(args.folder, torch.float32 if args.float32 else torch.float16)
    if args.samples:
        draw_samples(args.folder, args.samples)
    print(f"wrote {args.folder}" + ("" if finished else ", unfinished; --resume continues"))


def _given(options: dict) -> dict:
    return {name: value for name, value in options.items() if value is not None}


def main() -> int:
    """Runs the program."""
    return run_program(
        train, parse_args(), resume_hint="Continue with the same command and --resume."
    )


if __name__ == "__main__":
    sys.exit(main())
