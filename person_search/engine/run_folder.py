# SPDX-License-Identifier: Apache-2.0
"""Output folders: evaluations do not overwrite the record of the training.

::

    OUTPUT_DIR/config.yaml, results.json, inference/      of the training
    OUTPUT_DIR/eval/MODEL.PSDIFF.STEPS=2/config.yaml, …   of an evaluation with another setting
"""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from person_search.config import default_config
from person_search.engine.checkpoint import AtomicCheckpointer, write_safely
from person_search.engine.ema import FINAL_NAME
from person_search.interface import LoadsParts

CONFIG = "config.yaml"
EVALUATIONS = "eval"
"""Folder in OUTPUT_DIR for evaluations that differ from the one recorded there."""

MAX_NAME = 100
# Keys that do not change the results of an evaluation; whole sections end with a dot.
_WITHOUT_EFFECT = (
    "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.ALLOW_PARTIAL_LOAD", "SOLVER.",
    "DATALOADER.NUM_WORKERS", "DATALOADER.TIMEOUT", "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS", "VIS_PERIOD",
    "TEST.PERSON_SEARCH.DUMP_PREDICTIONS", "CUDNN_BENCHMARK", "VERSION", "TRACKING.",
)  # fmt: skip


def keys_without_weights(cfg: CfgNode) -> list[str]:
    """Returns the config keys that leave a model, or parts of it, with random weights.

    These are ``MODEL.WEIGHTS`` or, for a model with the hook
    :class:`~person_search.interface.LoadsParts`, the keys of its parts.
    """
    if cfg.MODEL.WEIGHTS:
        return []
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    parts = model.part_weights(cfg) if issubclass(model, LoadsParts) else {"MODEL.WEIGHTS": ""}
    return [key for key, value in parts.items() if not value]


def evaluation_config(cfg: CfgNode, *, resume: bool = False, untrained: bool = False) -> CfgNode:
    """Returns a config whose MODEL.WEIGHTS and OUTPUT_DIR are those of an evaluation.

    OUTPUT_DIR is kept if it is empty, or if its ``config.yaml`` describes this evaluation: that of
    a training with its final weights (the averaged ones with SOLVER.EMA). Other evaluations get
    ``OUTPUT_DIR/eval/<what is different>``.

    Args:
        cfg: Config, which is not changed.
        resume: Whether to evaluate the last checkpoint in OUTPUT_DIR.
        untrained: Whether to evaluate without weights.

    Raises:
        ValueError: If there are no weights, or the arguments contradict each other.
    """
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    if untrained and resume:
        raise ValueError("--untrained and --resume contradict each other: omit one of them.")
    if untrained:
        cfg.MODEL.WEIGHTS = ""
    elif resume:
        checkpointer = AtomicCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR, save_to_disk=False)
        cfg.MODEL.WEIGHTS = checkpointer.find_resumable()
        if not cfg.MODEL.WEIGHTS:
            raise ValueError(
                f"--eval-only --resume: there is no checkpoint in {cfg.OUTPUT_DIR!r} (OUTPUT_DIR). "
                "Without --resume, MODEL.WEIGHTS names the file to evaluate."
            )
    elif missing := keys_without_weights(cfg):
        raise ValueError(
            f"--eval-only: {' and '.join(missing)} is empty, so there is nothing to evaluate. Set "
            f"MODEL.WEIGHTS <file>, or use --resume for the last checkpoint in {cfg.OUTPUT_DIR!r}, "
            "or --untrained to evaluate random weights."
        )
    # decided by one process before any other writes: they must agree
    found = comm.all_gather(_folder(cfg, resume) if comm.is_main_process() else None)[0]
    assert found is not None
    cfg.OUTPUT_DIR = found
    if frozen:
        cfg.freeze()
    return cfg


def setup_run(cfg: CfgNode, args: Any) -> None:
    """Calls Detectron2's ``default_setup`` without its ``config.yaml``; see :func:`write_config`.

    Args:
        cfg: Config of the run.
        args: Parsed command line.

    Raises:
        OSError: If OUTPUT_DIR cannot be created.
    """
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as e:
        raise OSError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be created: {os.strerror(e.errno or 0)}. Set "
            "OUTPUT_DIR to a folder, new or existing, that you may write to."
        ) from e
    path = os.path.join(cfg.OUTPUT_DIR, CONFIG)
    writes = comm.is_main_process() and bool(cfg.OUTPUT_DIR)
    before = Path(path).read_bytes() if writes and os.path.isfile(path) else None
    logger = logging.getLogger("detectron2")
    logger.addFilter(_is_true)
    try:
        default_setup(cfg, args)
    finally:
        logger.removeFilter(_is_true)
        if before is not None:
            write_safely(path, before)
        elif writes:
            Path(path).unlink(missing_ok=True)


def write_config(cfg: CfgNode, *, replace: bool) -> None:
    """Writes ``config.yaml`` of a run that starts now; must be called in every process.

    Args:
        cfg: Config of the run.
        replace: Whether to replace an existing file: True for a training.
    """
    path = os.path.join(cfg.OUTPUT_DIR, CONFIG)
    if comm.is_main_process() and cfg.OUTPUT_DIR and (replace or not os.path.isfile(path)):
        write_safely(path, cfg.dump().encode())
        logging.getLogger(__name__).info("The full config is in %s", path)


def _folder(cfg: CfgNode, resume: bool) -> str:
    path = Path(cfg.OUTPUT_DIR, CONFIG)
    if not cfg.OUTPUT_DIR or not path.is_file():
        return cfg.OUTPUT_DIR
    try:
        recorded = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(
            f"{path} is not readable YAML: {e}. Remove it, or set another OUTPUT_DIR."
        ) from e
    recorded = recorded if isinstance(recorded, dict) else {}
    # a key that is newer than the file had its default value
    before = _flat(yaml.safe_load(default_config().dump())) | _flat(recorded)
    after = _flat(yaml.safe_load(cfg.dump()))
    changed = {
        key: value
        for key, value in after.items()
        if before.get(key, value) != value
        # it decides which weights of a checkpoint are loaded; elsewhere it has no effect either
        and (not key.startswith(_WITHOUT_EFFECT) or (resume and key == "SOLVER.EMA.ENABLED"))
    }
    weights = "" if resume else _weights_name(cfg, before)
    name = _name(weights, changed)
    return os.path.join(cfg.OUTPUT_DIR, EVALUATIONS, name) if name else cfg.OUTPUT_DIR


def _weights_name(cfg: CfgNode, recorded: dict[str, Any]) -> str:
    """Names the weights in a folder whose config is ``recorded``; "" for its own weights."""
    weights, folder = cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR
    final = f"{FINAL_NAME}.pth" if recorded["SOLVER.EMA.ENABLED"] else "model_final.pth"
    where, file = os.path.split(weights)
    own = bool(weights) and os.path.realpath(where) == os.path.realpath(folder)
    if own and file == final:
        return ""
    trained = os.path.isfile(os.path.join(folder, "last_checkpoint"))
    if not trained and weights == recorded["MODEL.WEIGHTS"]:
        return ""
    stem = file.removesuffix(".pth") or "untrained"
    return stem if own or not weights else f"{stem}-{_digest(os.path.abspath(weights))}"


def _name(weights: str, changed: dict[str, Any]) -> str:
    """Returns a unique file name for an evaluation; "" if nothing is different."""
    parts = [f"{key}={_value(value)}" for key, value in sorted(changed.items())]
    if weights:
        parts.insert(0, weights)
    name = ",".join(parts)
    kept = re.sub(r"[^-+=,.\w]+", "_", name)[:MAX_NAME]
    return name if kept == name else f"{kept}-{_digest(name)}"


def _value(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(x, str) for x in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _is_true(record: logging.LogRecord) -> bool:
    """Filters a message of Detectron2 about a file that is not kept."""
    return "Full config saved to" not in record.getMessage()
