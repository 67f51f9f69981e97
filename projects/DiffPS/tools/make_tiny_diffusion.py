#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a tiny Stable Diffusion model with random weights, for tests and demos without a download.

python projects/DiffPS/tools/make_tiny_diffusion.py output/tiny_sd
python projects/DiffPS/tools/make_tiny_diffusion.py output/random_sd --like output/trained_sd
python train_net.py --config-file ... MODEL.DIFFPS.BACKBONE.MODEL output/tiny_sd
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program

FAMILIES = ("sd15", "sd21", "sdxl")
PARTS = ("unet", "vae", "text_encoder")


def make(args: argparse.Namespace) -> None:
    """Writes the folder and prints its size."""
    import torch

    from diffps.tiny import write_random_like, write_tiny_diffusion

    dtype = torch.float32 if args.float32 else torch.float16
    if args.like:
        write_random_like(args.like, args.folder, args.seed, args.keep, dtype)
    else:
        write_tiny_diffusion(args.folder, args.seed, family=args.family, dtype=dtype)
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    print(f"{args.folder}: {size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="folder to write, created if it does not exist")
    add("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    add("--family", choices=FAMILIES, default="sd21", help="topology to follow (default: sd21)")
    add("--float32", action="store_true", help="store weights as float32 instead of float16")
    add("--like", metavar="FOLDER", help="copy this model and randomize its weights")
    add("--keep", nargs="*", default=[], choices=PARTS, help="with --like: parts to copy unchanged")
    args = parser.parse_args(argv)
    if args.keep and not args.like:
        parser.error("--keep needs --like")
    return run_program(make, args, log=False)


if __name__ == "__main__":
    sys.exit(main())
