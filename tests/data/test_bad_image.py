# SPDX-License-Identifier: Apache-2.0
"""An unreadable test image, from the file to the metrics."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.structures import Boxes, Instances
from mat_trees import small_cuhk_sysu

from person_search.config import add_person_search_config
from person_search.data import BadImageError, build_mapper, register_cuhk_sysu
from person_search.evaluation import PersonSearchEvaluator


@pytest.fixture
def name(tmp_path: Path):
    root = small_cuhk_sysu(tmp_path / "data")
    (root / "Image" / "SSM" / "s6.jpg").write_bytes(b"not an image")
    register_cuhk_sysu("with_bad_image", root, gallery_sizes=(100,))
    yield "with_bad_image_test"
    for split in ("train", "test"):
        DatasetCatalog.remove(f"with_bad_image_{split}")
        MetadataCatalog.remove(f"with_bad_image_{split}")


def make_loader(name: str, on_bad_image: str):
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.DATALOADER.ON_BAD_IMAGE = on_bad_image
    mapper = build_mapper(cfg, is_train=False)
    return build_detection_test_loader(DatasetCatalog.get(name), mapper=mapper, num_workers=0)


def perfect_output(record: dict) -> dict:
    """Detects all persons; the embedding of each identity is an axis of its own."""
    axes = torch.eye(8)
    found = Instances((record["height"] or 1, record["width"] or 1))
    found.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]))
    found.scores = torch.ones(len(found.pred_boxes))
    found.pred_classes = torch.zeros(len(found.pred_boxes), dtype=torch.int64)
    found.reid_feats = axes[[a["person_id"] for a in record["annotations"]]]
    queries = [query["query_id"] for query in record["queries"]]
    return {"instances": found, "query_feats": axes[queries]}


def test_its_persons_count_as_missed(name: str) -> None:
    records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    evaluator = PersonSearchEvaluator(name)
    evaluator.reset()
    seen = []
    for inputs in make_loader(name, "skip"):
        seen += [one["image_id"] for one in inputs]
        evaluator.process(inputs, [perfect_output(records[one["image_id"]]) for one in inputs])
    results = evaluator.evaluate()
    assert seen == [0, 1, 2, 3], "every image exactly once"
    # 2 of the 7 boxes are in s6.jpg, among them the only match of the second query
    assert results["detection"]["num_gt"] == 7 and results["detection"]["num_det"] == 5
    assert results["detection"]["recall"] == pytest.approx(100 * 5 / 7)
    assert results["search"]["mAP"] == pytest.approx(50)


def test_it_ends_the_evaluation_by_default(name: str) -> None:
    with pytest.raises(BadImageError, match="s6.jpg"):
        list(make_loader(name, "raise"))
