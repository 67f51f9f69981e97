#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes the encoded prompt and words of a DiffPS config, so that no text encoder is needed later.

    python projects/DiffPS/tools/encode_text.py text.safetensors \\
        --config-file configs/DiffPS/diffps_sd21_prw.yaml
    python train_net.py --config-file configs/DiffPS/diffps_sd21_prw.yaml \\
        MODEL.DIFFPS.BACKBONE.TEXT_EMBEDS_FILE text.safetensors
"""

import argparse

from person_search.cli import run_program


def encode(arguments: argparse.Namespace) -> int:
    """Encodes and writes; returns the exit status."""
    import torch

    from diffps.loading import open_folder
    from diffps.text_file import get_text, save_text
    from person_search.config import build_config

    cfg = build_config(arguments.config_file, arguments.opts)
    cfg.defrost()
    config = cfg.MODEL.DIFFPS.BACKBONE
    config.TEXT_EMBEDS_FILE = ""
    folder = open_folder(config)
    unet = folder.load_unet(torch.float32, config.FAMILY)
    text = get_text(cfg, folder, unet)
    save_text(arguments.output, text, config.PROMPT, unet)
    words = ", ".join(text.word_vectors)
    print(f"{arguments.output}: the prompt {config.PROMPT!r} and the words {words}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("output", help="file to write, .safetensors")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    return run_program(encode, parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
