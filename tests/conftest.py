# SPDX-License-Identifier: Apache-2.0
"""What all tests share: seeds, hypothesis settings, skips with a reason, backend in the header."""

import importlib.util
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, settings

import person_search.data  # noqa: F401  (registers the built-in data sets, which are to stay)
from person_search.utils import backend_name

ROOT = Path(__file__).resolve().parents[1]
LOGGERS = ("detectron2", "fvcore", "person_search", "psdiff")

# No deadline: machines under load are slow. Derandomized: a run of CI can be repeated.
settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_report_header() -> str:
    return f"detectron2 backend: {backend_name()}, torch {torch.__version__}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what the machine cannot run."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def seed_everything() -> None:
    """Gives every test the same start, whatever ran before it in the same process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def child_env() -> dict[str, str]:
    """Environment for a child process: one thread, whatever the number of test workers."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def restore_loggers() -> Iterator[None]:
    """Takes back what Detectron2's setup_logger does, which is for the rest of the process."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(list(x.handlers), x.propagate, x.level) for x in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def forget_datasets() -> Iterator[None]:
    """Takes away the data sets that a test registered, so that others may use their names.

    What fixtures of a wider scope registered is there before and stays.
    """
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(scope="session")
def train_net(repo_root: Path) -> ModuleType:
    """train_net.py as a module, whose main() runs in this process."""
    spec = importlib.util.spec_from_file_location("train_net", repo_root / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
