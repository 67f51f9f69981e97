# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation from JSON files by config alone."""

import json
import math
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from json_trees import write_json_set
from tiny_model import tiny_cfg, unregister_dataset, write_tiny_dataset
from tiny_runs import train

from person_search.config import add_person_search_config, build_config
from person_search.data import get_num_pids, register_config_datasets, register_person_search_json
from person_search.data.datasets.json_writer import make_document, write_document
from person_search.engine import PersonSearchTrainer, resolve_num_pids

NAMES = ("own_train", "own_test")


@pytest.fixture(autouse=True)
def forget():
    yield
    for name in NAMES:
        unregister_dataset(name)


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$DETECTRON2_DATASETS with mine/train.json and mine/test.json, images in mine/images."""
    folder = tmp_path / "data"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    records = write_tiny_dataset(folder / "mine" / "images")
    for name in ("train", "test"):
        document = make_document(records, folder / "mine", ["anna", "bert", "carl"])
        write_document(folder / "mine" / f"{name}.json", document)
    return folder


def entries(*more: str) -> list[list[str]]:
    return [[name, f"mine/{name.removeprefix('own_')}.json", *more] for name in NAMES]


def test_train_and_evaluate_by_config_alone(datasets: Path, tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path / "out", "own_train")
    cfg.DATASETS.TEST = ("own_test",)
    cfg.DATASETS.PERSON_SEARCH_JSON = entries()
    cfg.freeze()
    assert resolve_num_pids(cfg).MODEL.REID.NUM_PIDS == 3
    trainer, losses = train(cfg)
    assert len(losses) == 8 and all(math.isfinite(loss) for loss in losses.values())
    results = PersonSearchTrainer.test(cfg, trainer.model)
    assert results["detection"]["num_gt"] == 12 and 0 <= results["search"]["mAP"] <= 100
    assert json.loads((tmp_path / "out" / "results.json").read_text())["search"]


def test_metadata_reads_no_file(tmp_path: Path) -> None:
    register_person_search_json("own_test", tmp_path / "later.json")
    metadata = MetadataCatalog.get("own_test")
    assert metadata.evaluator_type == "person_search" and metadata.thing_classes == ["person"]
    with pytest.raises(FileNotFoundError, match="later.json"):
        DatasetCatalog.get("own_test")
    with pytest.raises(FileNotFoundError, match="later.json"):
        get_num_pids("own_test")
    write_json_set(tmp_path, name="later.json")
    assert len(DatasetCatalog.get("own_test")) == 4 and get_num_pids("own_test") == 2
    assert list(metadata.search_protocols) == ["all", "multi_view"]
    assert tuple(metadata.default_search_protocols) == ("all",)
    assert metadata.search_protocols["multi_view"]().name == "multi_view"


def make_cfg(value: list):
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.DATASETS.PERSON_SEARCH_JSON = value
    return cfg


def test_paths_start_at_the_data_folder_or_are_absolute(datasets: Path) -> None:
    register_config_datasets(make_cfg(entries()))
    register_config_datasets(make_cfg(entries()))  # once more changes nothing
    records = DatasetCatalog.get("own_train")
    assert records[0]["file_name"] == str(datasets / "mine" / "images" / "s1.jpg")
    unregister_dataset("own_train")
    absolute = [["own_train", str(datasets / "mine" / "train.json"), str(datasets / "mine")]]
    register_config_datasets(make_cfg(absolute))
    assert DatasetCatalog.get("own_train") == records
    unregister_dataset("own_train")
    register_config_datasets(make_cfg([["own_train", "mine/train.json", "mine"]]))
    assert DatasetCatalog.get("own_train") == records


def test_the_key_comes_from_a_file_or_the_command_line(datasets: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("DATASETS:\n  PERSON_SEARCH_JSON:\n  - [own_train, mine/train.json]\n")
    cfg = build_config(path, ["MODEL.DEVICE", "cpu"])
    assert cfg.DATASETS.PERSON_SEARCH_JSON == [["own_train", "mine/train.json"]]
    opts = ["MODEL.DEVICE", "cpu", "DATASETS.PERSON_SEARCH_JSON", "[['own_test', 'mine/x.json']]"]
    assert build_config(path, opts).DATASETS.PERSON_SEARCH_JSON == [["own_test", "mine/x.json"]]
    assert "mine/train.json" in cfg.dump()


@pytest.mark.parametrize(
    "value", [["own_train"], [["own_train"]], ["own_train", "a.json"], [[1, "a.json"]], [["a", ""]]]
)
def test_wrong_entries_are_named(value: list) -> None:
    with pytest.raises(ValueError, match=r"DATASETS.PERSON_SEARCH_JSON has .*\[name, JSON file\]"):
        register_config_datasets(make_cfg(value))


def test_a_name_is_taken_once(datasets: Path) -> None:
    register_config_datasets(make_cfg([["own_train", "mine/train.json"]]))
    with pytest.raises(ValueError, match="'own_train' is already registered"):
        register_config_datasets(make_cfg([["own_train", "mine/test.json"]]))
    with pytest.raises(ValueError, match="'prw_train' is already registered"):
        register_config_datasets(make_cfg([["prw_train", "mine/train.json"]]))
