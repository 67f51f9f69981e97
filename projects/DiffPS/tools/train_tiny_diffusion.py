#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny Stable Diffusion model on synthetic scenes: a prior for DiffPS, without a download.

    python projects/DiffPS/tools/train_tiny_diffusion.py output/tiny_prior
    python projects/DiffPS/tools/train_tiny_diffusion.py output/tiny_prior --resume --time-budget 20

The folder is in diffusers format. Scenes, latents and checkpoints lie in <folder>_work; Ctrl-C
loses at most 500 iterations. projects/DiffPS/tools/measure_pointing.py tells what the attention of the result
finds.
"""

import argparse
import sys
from pathlib import Path

from person_search.cli import run_program


def parse_args() -> argparse.Namespace:
    """Reads the command line; options left out are those of ``PriorOptions``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="to write the model to")
    parser.add_argument("--work", type=Path, help="for scenes, latents and checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--time-budget", type=float, default=0.0, metavar="MINUTES",
                        help="stop then and write the folder as it is; 0: no limit")  # fmt: skip
    parser.add_argument("--seed", type=int, help="of weights and batches")
    parser.add_argument("--vae-iterations", type=int)
    parser.add_argument("--iterations", type=int, help="of UNet and text encoder")
    parser.add_argument("--scenes", type=int, help="how many")
    parser.add_argument("--scenes-seed", type=int, help="of their places and people")
    parser.add_argument("--device", help="of torch; left out: the GPU if there is one")
    parser.add_argument("--samples", type=Path, metavar="PNG",
                        help="also let the model draw some images from captions")  # fmt: skip
    parser.add_argument("--float32", action="store_true", help="store float32, not float16")
    parser.add_argument("--quiet", action="store_true", help="log lines, no progress bars")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    """Trains and writes the folder."""
    import torch
    from detectron2.utils.logger import setup_logger

    from diffps.prior.recipe import PriorOptions, PriorTraining
    from diffps.prior.samples import draw_samples
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
    print(f"{args.folder} is written" + ("" if finished else ", unfinished; --resume goes on"))


def _given(options: dict) -> dict:
    return {name: value for name, value in options.items() if value is not None}


def main() -> int:
    return run_program(train, parse_args())


if __name__ == "__main__":
    sys.exit(main())
