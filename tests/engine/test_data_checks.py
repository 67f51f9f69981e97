# SPDX-License-Identifier: Apache-2.0
"""MODEL.REID.NUM_PIDS against the training data."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_model import register_tiny_dataset, unregister_dataset

from person_search.engine import PersonSearchTrainer, resolve_num_pids


def test_zero_is_filled_in_and_the_input_untouched(make_cfg) -> None:
    cfg = make_cfg()
    resolved = resolve_num_pids(cfg)
    assert (cfg.MODEL.REID.NUM_PIDS, resolved.MODEL.REID.NUM_PIDS) == (0, 3)
    assert resolved.is_frozen()
    assert resolve_num_pids(resolved) is resolved


def test_contradiction_names_both_numbers_key_and_data_set(make_cfg, dataset) -> None:
    cfg = make_cfg("out", "MODEL.REID.NUM_PIDS", 5532)
    text = rf"MODEL.REID.NUM_PIDS is 5532, but {dataset} has 3 identities. Set it to 3, or to 0"
    with pytest.raises(ValueError, match=text):
        PersonSearchTrainer(cfg)


def test_no_training_set(make_cfg) -> None:
    cfg = make_cfg("out", "DATASETS.TRAIN", ())
    assert resolve_num_pids(cfg) is cfg


def test_two_training_sets_with_identities_are_refused(make_cfg, dataset, tmp_path) -> None:
    register_tiny_dataset("second_tiny", tmp_path / "second")
    cfg = make_cfg("out", "DATASETS.TRAIN", (dataset, "second_tiny"))
    with pytest.raises(ValueError, match="2 data sets with identities"):
        resolve_num_pids(cfg)
    unregister_dataset("second_tiny")


def test_evaluation_without_the_training_data(make_cfg) -> None:
    def absent():
        raise FileNotFoundError("datasets/PRW/frame_train.mat is missing")

    DatasetCatalog.register("absent_train", absent)
    try:
        cfg = make_cfg("out", "DATASETS.TRAIN", ("absent_train",))
        with pytest.raises(FileNotFoundError, match="frame_train.mat"):
            resolve_num_pids(cfg)
        with pytest.raises(FileNotFoundError, match="(?s)frame_train.mat.*set MODEL.REID.NUM_PIDS"):
            resolve_num_pids(cfg, need_data=False)
        cfg = make_cfg("out", "DATASETS.TRAIN", ("absent_train",), "MODEL.REID.NUM_PIDS", 483)
        assert resolve_num_pids(cfg, need_data=False).MODEL.REID.NUM_PIDS == 483
    finally:
        DatasetCatalog.remove("absent_train")
        MetadataCatalog.pop("absent_train", None)
