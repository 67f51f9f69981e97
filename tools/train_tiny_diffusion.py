#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny Stable Diffusion model on synthetic scenes: a prior for DiffPS, without a download.

    python tools/train_tiny_diffusion.py output/tiny_prior
    python tools/train_tiny_diffusion.py output/tiny_prior --resume --time-budget 20

The folder is in diffusers format. Scenes, latents and checkpoints lie beside it, in <folder>_work.
One CPU core takes about three quarters of an hour. tools/measure_pointing.py tells what the
attention of the result finds.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from diffps.prior.recipe import PriorOptions, PriorTraining
from diffps.prior.scenes import SceneOptions


def build_parser() -> argparse.ArgumentParser:
    default = PriorOptions()
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="to write the model to")
    parser.add_argument("--work", type=Path, help="for scenes, latents and checkpoints; "
                        "None: <folder>_work")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--time-budget", type=float, default=0.0, metavar="MINUTES",
                        help="stop then, with the folder written; 0: no limit")  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="of weights and batches")
    parser.add_argument("--vae-iterations", type=int, default=default.vae_iterations)
    parser.add_argument("--iterations", type=int, default=default.iterations,
                        help="of UNet and text encoder")  # fmt: skip
    parser.add_argument("--scenes", type=int, default=default.scenes.count)
    parser.add_argument("--scenes-seed", type=int, default=default.scenes.seed,
                        help="of their places and people")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--float32", action="store_true", help="store float32, not float16")
    parser.add_argument("--quiet", action="store_true", help="log lines, no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        options = PriorOptions(
            seed=args.seed,
            vae_iterations=args.vae_iterations,
            iterations=args.iterations,
            scenes=SceneOptions(count=args.scenes, seed=args.scenes_seed),
        )
        work = args.work or args.folder.with_name(args.folder.name + "_work")
        training = PriorTraining(
            options, work, args.device, args.resume, args.time_budget, progress=not args.quiet
        )
        finished = training.run()
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    training.save(args.folder, torch.float32 if args.float32 else torch.float16)
    print(f"{args.folder} is written" + ("" if finished else "; --resume goes on"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
