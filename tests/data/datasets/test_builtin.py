# SPDX-License-Identifier: Apache-2.0
"""Registration: names, folders and identities, without reading a file too early."""

import json
import math
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from json_trees import write_json_set
from mat_trees import small_cuhk_sysu, small_prw
from tiny_model import tiny_cfg, unregister_dataset, write_tiny_dataset
from tiny_runs import train

from person_search.config import add_person_search_config, build_config
from person_search.data import (
    IncompleteDatasetError,
    get_num_pids,
    register_builtin_datasets,
    register_config_datasets,
    register_cuhk_sysu,
    register_person_search_json,
    register_prw,
)
from person_search.data.datasets.json_writer import make_document, write_document
from person_search.engine import PersonSearchTrainer, resolve_num_pids
from person_search.evaluation import PersonSearchEvaluator

BUILTIN = [
    f"{prefix}{name}_{split}"
    for prefix in ("", "synthetic_")
    for name in ("cuhk_sysu", "prw")
    for split in ("train", "test")
]


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def test_registering_again_changes_nothing() -> None:
    register_builtin_datasets()
    register_builtin_datasets()
    assert set(BUILTIN) <= set(DatasetCatalog)


@pytest.mark.parametrize("name", BUILTIN)
def test_metadata_needs_no_file(parent: Path, name: str) -> None:
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "person_search" and metadata.thing_classes == ["person"]
    if name.endswith("_test"):
        assert set(metadata.default_search_protocols) <= set(metadata.search_protocols)
    with pytest.raises(IncompleteDatasetError, match="was not found"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("folder", ["CUHK-SYSU", "cuhk_sysu"])
@pytest.mark.parametrize("below", ["", "synthetic"])
def test_both_names_of_the_cuhk_sysu_folder(parent: Path, folder: str, below: str) -> None:
    small_cuhk_sysu(parent / below / folder)
    prefix = "synthetic_" if below else ""
    assert len(DatasetCatalog.get(f"{prefix}cuhk_sysu_train")) == 3
    assert len(DatasetCatalog.get(f"{prefix}cuhk_sysu_test")) == 4
    assert get_num_pids(f"{prefix}cuhk_sysu_train") == 2
    protocols = MetadataCatalog.get(f"{prefix}cuhk_sysu_test").search_protocols
    sizes = ["g50", "g100", "g500", "g1000", "g2000", "g4000"]
    assert list(protocols) == [*sizes, "occlusion", "low_resolution"]
    assert protocols["g50"]().name == "g50"


@pytest.mark.parametrize("folder", ["PRW", "PRW-v16.04.20"])
def test_both_names_of_the_prw_folder(parent: Path, folder: str) -> None:
    small_prw(parent / folder)
    assert len(DatasetCatalog.get("prw_train")) == 2
    assert get_num_pids("prw_train") == 3
    metadata = MetadataCatalog.get("prw_test")
    assert metadata.default_search_protocols == ("all",)
    assert {name: make().name for name, make in metadata.search_protocols.items()} == {
        "all": "all",
        "multi_view": "multi_view",
    }


def test_the_folder_is_datasets_where_the_variable_is_not_set(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    small_prw(tmp_path / "datasets" / "PRW")
    assert len(DatasetCatalog.get("prw_train")) == 2


def test_another_folder(tmp_path: Path) -> None:
    root = small_cuhk_sysu(tmp_path / "mine")
    register_cuhk_sysu("mine", root, gallery_sizes=(50,))
    register_cuhk_sysu("mine", root, gallery_sizes=(50,))
    metadata = MetadataCatalog.get("mine_test")
    assert list(metadata.search_protocols) == ["g50", "occlusion", "low_resolution"]
    assert metadata.default_search_protocols == ("g50",)
    register_prw("my_prw", small_prw(tmp_path / "prw"))
    assert get_num_pids("my_prw_train") == 3
    with pytest.raises(ValueError, match="'mine_train' is already registered.*elsewhere"):
        register_cuhk_sysu("mine", tmp_path / "elsewhere")


def records_with(pids: list[int]) -> list[dict]:
    return [{"annotations": [{"person_id": pid} for pid in pids]}]


def test_identities_of_any_other_data_set_are_counted() -> None:
    DatasetCatalog.register("counted", lambda: records_with([1, -1, 0, 1]))
    assert get_num_pids("counted") == 2
    DatasetCatalog.register("gap", lambda: records_with([0, 2]))
    with pytest.raises(ValueError, match="'gap'.* but 1 is absent"):
        get_num_pids("gap")
    DatasetCatalog.register("unlabeled", lambda: records_with([-1]))
    with pytest.raises(ValueError, match="'unlabeled'"):
        get_num_pids("unlabeled")
    MetadataCatalog.get("gap").num_pids = 3
    assert get_num_pids("gap") == 3


def test_a_data_set_of_detectron2_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = write_json_set(tmp_path)
    document = json.loads(path.read_text())
    document["categories"] = [{"id": 1, "name": "person"}]
    for annotation in document["annotations"]:
        annotation |= {"category_id": 1, "iscrowd": 0}
    path.write_text(json.dumps(document))
    register_coco_instances("coco_of_mine", {}, str(path), str(tmp_path))
    try:
        for use in (
            lambda: get_num_pids("coco_of_mine"),
            lambda: PersonSearchEvaluator("coco_of_mine"),
        ):
            with pytest.raises(ValueError, match="registered by register_coco_instances") as raised:
                use()
            entry = f"'coco_of_mine', '{path}', '{tmp_path}'"
            assert f"register_person_search_json({entry})" in str(raised.value)
            assert "DATASETS.PERSON_SEARCH_JSON [[" in str(raised.value)
    finally:
        unregister_dataset("coco_of_mine")


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
