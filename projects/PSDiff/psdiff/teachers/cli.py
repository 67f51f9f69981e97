# SPDX-License-Identifier: Apache-2.0
"""What the teacher scripts share: arguments, config, log, and errors in one line."""

import argparse
import os
import sys
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from person_search.config import build_config


def run_script(description: str, work: Callable[[CfgNode], None]) -> int:
    """Reads ``--config-file`` and KEY VALUE overrides, sets up log and seed, and calls ``work``.

    Returns:
        Exit status: 2, after one line on stderr, for wrong data, config or weights.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, help="a config of PSDiff, configs/PSDiff/")
    parser.add_argument("opts", nargs="*", help="config overrides: KEY VALUE pairs")
    args = parser.parse_args()
    try:
        cfg = build_config(args.config_file, args.opts)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        for name in ("detectron2", "fvcore", "psdiff", "person_search"):
            setup_logger(cfg.OUTPUT_DIR, name=name, abbrev_name=name)
        seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
        work(cfg)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
