#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Encodes the prompt and the words of a DiffPS config, so that no text encoder is needed later.

CONFIG=configs/DiffPS/diffps_sd21_prw.yaml
python projects/DiffPS/tools/encode_text.py --output text.safetensors --config-file $CONFIG
python train_net.py --config-file $CONFIG MODEL.DIFFPS.BACKBONE.TEXT_EMBEDS_FILE text.safetensors
"""

import argparse
import sys
from collections.abc import Sequence

from person_search.cli import program_parser, run_program


def encode(args: argparse.Namespace) -> None:
    """Encodes the text and writes it."""
    import torch

    from diffps.loading import open_folder
    from diffps.text import get_text, save_text
    from person_search.config import build_config

    cfg = build_config(args.config_file, args.opts)
    cfg.defrost()
    config = cfg.MODEL.DIFFPS.BACKBONE
    config.TEXT_EMBEDS_FILE = ""
    folder = open_folder(config)
    unet = folder.load_unet(torch.float32, config.FAMILY)
    text = get_text(cfg, folder, unet)
    save_text(args.output, text, config.PROMPT, unet)
    words = ", ".join(text.word_vectors)
    print(f"{args.output}: the prompt {config.PROMPT!r} and the words {words}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = program_parser(__doc__, config=True)
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="file to write (.safetensors)"
    )
    return run_program(encode, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
