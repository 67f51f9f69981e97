# SPDX-License-Identifier: Apache-2.0
"""A registered tiny data set, configs on it, and train_net.py run with them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from tiny_model import register_tiny_dataset, tiny_cfg, unregister_dataset

DATASET = "tiny_for_engine_tests"


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """Name of a registered data set of six images, for training and test."""
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


@pytest.fixture
def config(make_cfg, tmp_path: Path) -> str:
    """Path of a YAML file with the config of the tiny run."""
    cfg = make_cfg()
    text = cfg.dump()
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    assert yaml.safe_load(text)["MODEL"]["META_ARCHITECTURE"] == "TinyPersonSearch"
    return str(path)


@pytest.fixture
def run(train_net, config, tmp_path):
    """Runs main() with the tiny config; returns the output folder."""

    def run(*arguments: str) -> Path:
        command = ["--num-gpus", "0", "--config-file", config, *arguments]
        train_net.main(command)
        return tmp_path / "out"

    return run
