# SPDX-License-Identifier: Apache-2.0
"""A registered tiny data set and configs on it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from tiny_model import register_tiny_dataset, tiny_cfg, unregister_dataset

DATASET = "tiny_for_engine_tests"


LOGGERS = ("detectron2", "fvcore", "person_search", "psdiff")


@pytest.fixture(autouse=True)
def restore_loggers() -> Iterator[None]:
    """Takes back what Detectron2's setup_logger does, which is for the rest of the process."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(list(x.handlers), x.propagate, x.level) for x in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """Name of a registered data set of six pictures, for training and test."""
    register_tiny_dataset(DATASET, tmp_path / "images")
    yield DATASET
    unregister_dataset(DATASET)


@pytest.fixture
def make_cfg(tmp_path: Path, dataset: str) -> Callable[..., CfgNode]:
    """Returns ``make(name, "KEY", value, …)``: a frozen config with its own output folder."""

    def make(name: str = "out", *opts) -> CfgNode:
        cfg = tiny_cfg(tmp_path / name, dataset)
        cfg.merge_from_list(list(opts))
        cfg.freeze()
        return cfg

    return make
