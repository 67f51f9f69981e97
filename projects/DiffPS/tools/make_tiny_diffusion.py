#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes a tiny Stable Diffusion folder: for tests and demos without a download.

python projects/DiffPS/tools/make_tiny_diffusion.py output/tiny_sd
python projects/DiffPS/tools/make_tiny_diffusion.py output/random_sd --like output/trained_sd
python train_net.py --config-file ... MODEL.DIFFPS.BACKBONE.MODEL output/tiny_sd
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from diffps.tiny import FAMILIES, RANDOM_PARTS, write_random_like, write_tiny_diffusion


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", help="is made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--family", choices=FAMILIES, default="sd21", help="topology to follow")
    parser.add_argument("--float32", action="store_true", help="store float32, not float16")
    parser.add_argument("--like", metavar="FOLDER", help="copy this model, with random weights")
    parser.add_argument("--keep", nargs="*", default=[], choices=RANDOM_PARTS,
                        help="with --like: parts whose weights are kept")  # fmt: skip
    args = parser.parse_args(argv)
    dtype = torch.float32 if args.float32 else torch.float16
    if args.like:
        folder = write_random_like(args.like, args.folder, args.seed, args.keep, dtype)
    elif args.keep:
        parser.error("--keep needs --like")
    else:
        folder = write_tiny_diffusion(args.folder, args.seed, family=args.family, dtype=dtype)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
