# SPDX-License-Identifier: Apache-2.0
"""What the teacher scripts share: arguments, config and log."""

import argparse
import os

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from person_search.config import add_person_search_config
from psdiff.config import add_psdiff_config


def parse_config(description: str) -> CfgNode:
    """Reads ``--config-file`` and KEY VALUE overrides from the command line and sets up the log."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, help="a config of PSDiff, configs/PSDiff/")
    parser.add_argument("opts", nargs="*", help="config overrides: KEY VALUE pairs")
    args = parser.parse_args()
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_psdiff_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    for name in ("detectron2", "fvcore", "psdiff", "person_search"):
        setup_logger(cfg.OUTPUT_DIR, name=name, abbrev_name=name)
    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
    return cfg
