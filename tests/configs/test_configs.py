# SPDX-License-Identifier: Apache-2.0
"""Every YAML in ``configs/`` loads, has an existing base and names registered parts."""

import json
import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from packaged import full_cfg

import person_search.data

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in FILES if not Path(name).name.startswith("Base-")]


def load(name: str) -> CfgNode:
    cfg = full_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


def test_there_are_configs() -> None:
    assert LEAVES, f"no leaf YAML under {CONFIGS}"


@pytest.mark.parametrize("name", FILES)
def test_file_loads_with_the_keys_of_all_projects(name: str) -> None:
    load(name)


@pytest.mark.parametrize("name", FILES)
def test_base_lies_inside_configs(name: str) -> None:
    base = re.search(r"^_BASE_:\s*\"?([^\"\n#]+?)\"?\s*$", (CONFIGS / name).read_text(), re.M)
    if base is not None:
        target = ((CONFIGS / name).parent / base.group(1)).resolve()
        assert target.is_file(), f"{name}: _BASE_ {base.group(1)} does not exist"
        assert CONFIGS in target.parents, f"{name}: _BASE_ leaves configs/"


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_names_registered_parts(name: str) -> None:
    cfg = load(name)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.DATALOADER.MAPPER in person_search.data.MAPPER_REGISTRY
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    person_search.data.register_config_datasets(cfg)
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert dataset in DatasetCatalog.list()


@pytest.mark.parametrize("name", LEAVES)
def test_resolved_config_reads_back_the_same(name: str, tmp_path: Path) -> None:
    """A run writes its resolved config beside its results; loading that gives the same run."""
    cfg = load(name)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(cfg.dump())
    again = full_cfg()
    again.merge_from_file(str(resolved))
    # as JSON, which like YAML has no tuples: they come back as lists
    assert json.dumps(again) == json.dumps(cfg)


def test_unknown_key_fails_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(yaml.safe_dump({"TEST": {"PERSON_SEARCH": {"SCORE_TRESH": 0.1}}}))
    with pytest.raises(
        KeyError, match=r"Non-existent config key: .*TEST\.PERSON_SEARCH\.SCORE_TRESH"
    ):
        full_cfg().merge_from_file(str(path))


def test_unknown_override_fails_and_is_named() -> None:
    with pytest.raises((AssertionError, KeyError), match="NO_SUCH_KEY"):
        full_cfg().merge_from_list(["MODEL.REID.NO_SUCH_KEY", 1])
