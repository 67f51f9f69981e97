# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: seeds, hypothesis settings, skips, isolation from the checkout."""

import logging
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, settings
from programs import load_program

import person_search.data  # noqa: F401  (registers the built-in data sets, which stay)
from person_search.utils import backend_name

ROOT = Path(__file__).resolve().parents[1]
USER_SETTINGS = (
    "DETECTRON2_DATASETS",
    "PERSON_SEARCH_CACHE",
    "PERSON_SEARCH_TRACEBACK",
    "DEMO_STARTED",
)
LOGGERS = ("detectron2", "fvcore", "person_search", "psdiff")

# No deadline: machines under load are slow. Derandomized: a run of CI can be repeated.
settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_configure() -> None:
    """Removes the settings of the user from the environment, before test modules are imported."""
    for name in USER_SETTINGS:
        os.environ.pop(name, None)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if any(paths):  # tests and their child processes run in another folder
        os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)


def pytest_report_header() -> str:
    return f"detectron2 backend: {backend_name()}, torch {torch.__version__}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves files with slow tests to the front, and skips tests that need an absent GPU.

    A worker runs whole files: with a slow one at the end, it would be the only one that works.
    """
    slow = Counter(item.path for item in items if "slow" in item.keywords)
    items.sort(key=lambda item: -slow[item.path])
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session", autouse=True)
def outside_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs the tests in a temporary folder, which it returns, with an empty cache.

    No test reads or writes what lies in the checkout beside the tracked files, such as the output
    of the demo or the data sets of the user.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("session")
        patch.chdir(folder)
        patch.setenv("PERSON_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield folder


@pytest.fixture(autouse=True)
def current_folder(outside_the_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives every test an empty current folder of its own."""
    # tmp_path_factory.mktemp() lists the folders of all tests before
    monkeypatch.chdir(tempfile.mkdtemp(dir=outside_the_checkout))


@pytest.fixture(autouse=True)
def seed_everything() -> None:
    """Seeds all generators before each test."""
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
    """Restores the loggers, which Detectron2's setup_logger changes for the whole process."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(list(x.handlers), x.propagate, x.level) for x in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def forget_datasets() -> Iterator[None]:
    """Removes the data sets that a test registered, so that other tests may use their names.

    Those that fixtures of a wider scope registered stay.
    """
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(scope="session")
def train_net() -> ModuleType:
    """train_net.py as a module, whose main() runs in this process."""
    return load_program("train_net.py")
