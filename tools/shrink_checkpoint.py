#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the weights of a training checkpoint as float16, without the optimizer state.

    python tools/shrink_checkpoint.py output/diffps_tiny/model_final_ema.pth weights.safetensors

The result can be used as MODEL.WEIGHTS and keeps the model card. Integer buffers keep their type.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program


def shrink(checkpoint: Path, output: Path) -> int:
    """Writes the weights of a checkpoint as float16.

    Args:
        checkpoint: Checkpoint of a training.
        output: File to write (.safetensors).

    Returns:
        The size of ``output`` in bytes.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the file holds no weights, or a weight exceeds the range of float16.
    """
    from person_search.utils.weight_files import read_card, read_checkpoint, save_weights

    half = {}
    for name, value in read_checkpoint(checkpoint)["model"].items():
        half[name] = value.half() if value.is_floating_point() else value
        if value.is_floating_point() and not half[name].isfinite().all():
            raise ValueError(f"{name} of {checkpoint} exceeds the range of float16")
    save_weights(output, half, read_card(checkpoint))
    return output.stat().st_size


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a training (.pth)")
    parser.add_argument("output", type=Path, help="file to write (.safetensors)")
    args = parser.parse_args(argv)
    if args.output.suffix != ".safetensors":
        parser.error(f"output is {args.output}; its name must end in .safetensors")
    return args


def run(args: argparse.Namespace) -> None:
    """Shrinks the checkpoint and prints the size of the result."""
    size = shrink(args.checkpoint, args.output)
    print(f"{args.output}: {size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(run, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
