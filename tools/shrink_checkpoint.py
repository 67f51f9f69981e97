#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the weights of a checkpoint as float16, without optimizer and the rest.

    python tools/shrink_checkpoint.py output/diffps_tiny/model_final_ema.pth weights.safetensors

The result serves as MODEL.WEIGHTS. Buffers that count (int64) keep their type.
"""

import argparse
import sys
from pathlib import Path

from safetensors.torch import save_file

from person_search.utils.weight_files import read_weights


def shrink(checkpoint: Path, output: Path) -> int:
    """Writes ``output`` (.safetensors); returns its size in bytes.

    Raises:
        FileNotFoundError: no such checkpoint. ValueError: it has no ``model``, or a weight is too
            large for float16.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint {checkpoint}")
    half = {}
    for name, value in read_weights(checkpoint).items():
        half[name] = value.half().contiguous() if value.is_floating_point() else value.contiguous()
        if value.is_floating_point() and not half[name].isfinite().all():
            raise ValueError(f"{name} of {checkpoint} does not fit into float16.")
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, output)
    return output.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, help="ends in .safetensors")
    args = parser.parse_args()
    try:
        size = shrink(args.checkpoint, args.output)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
