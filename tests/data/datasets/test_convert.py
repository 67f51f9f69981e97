# SPDX-License-Identifier: Apache-2.0
"""CUHK-SYSU and PRW as JSON: the same records, the same protocols, the same results."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given
from hypothesis import strategies as st
from mat_trees import small_cuhk_sysu, small_prw, write_image

from person_search.data import (
    load_cuhk_sysu,
    load_cuhk_sysu_protocol,
    load_json_protocol,
    load_person_search_json,
    load_prw,
    load_prw_protocol,
    register_cuhk_sysu,
    register_person_search_json,
    register_prw,
)
from person_search.data.datasets.check import FORMATS
from person_search.data.datasets.convert import convert_known_format
from person_search.data.datasets.json_document import parse_document
from person_search.data.datasets.json_writer import make_document, write_document, xyxy_to_xywh
from person_search.data.synthetic import SyntheticConfig, write_cuhk_sysu, write_prw
from person_search.evaluation import PersonSearchEvaluator
from person_search.schema import SearchProtocol

OPTIONS = SyntheticConfig(
    train_images=10,
    test_images=8,
    train_ids=5,
    test_ids=4,
    width=128,
    height=96,
    gallery_sizes=(5, 7),
)
READERS = {
    "cuhk_sysu": (load_cuhk_sysu, load_cuhk_sysu_protocol),
    "prw": (load_prw, load_prw_protocol),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """The generated sets, with their quirks, and the sets written by hand."""
    folder = tmp_path_factory.mktemp("sets")
    roots = {"cuhk_sysu": folder / "CUHK-SYSU", "prw": folder / "PRW"}
    write_cuhk_sysu(roots["cuhk_sysu"], OPTIONS, progress=False)
    write_prw(roots["prw"], OPTIONS, progress=False)
    roots["small cuhk_sysu"] = small_cuhk_sysu(folder / "small1")
    roots["small prw"] = small_prw(folder / "small2")
    return roots


def comparable(records: list[dict]) -> list[dict]:
    """Records without what the JSON does not keep."""
    dropped = ("is_hard",)
    return [
        {
            **{"queries": []},
            **record,
            "annotations": [
                {key: value for key, value in a.items() if key not in dropped}
                for a in record["annotations"]
            ],
        }
        for record in records
    ]


def assert_same_protocol(ours: SearchProtocol, theirs: SearchProtocol) -> None:
    for one in dataclasses.fields(SearchProtocol):
        a, b = getattr(ours, one.name), getattr(theirs, one.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, one.name
            np.testing.assert_array_equal(a, b, err_msg=one.name)
        else:
            assert a == b, one.name


@pytest.mark.parametrize("which", ["cuhk_sysu", "prw", "small cuhk_sysu", "small prw"])
def test_records_and_protocols_are_the_same(which: str, roots, tmp_path: Path) -> None:
    root, format_name = roots[which], which.split()[-1]
    load, load_protocol = READERS[format_name]
    splits = convert_known_format(format_name, root, tmp_path, "copy")
    for one in splits:
        copied = load_person_search_json(one.path, root)
        original = comparable(load(root, one.split))
        if one.split == "train":
            for record in copied:
                record["queries"] = []  # those of the rule; training ignores them
        assert copied == original
    kind = FORMATS[format_name]
    assert splits[0].table.num_pids == kind.count_train_pids(root)
    names = kind.protocols(root)
    assert splits[1].protocols[0] == names[0]
    for name in names:
        assert_same_protocol(load_json_protocol(splits[1].path, name), load_protocol(root, name))


def noisy_results(name: str, protocol: str) -> dict:
    """Evaluates detections and embeddings that depend on nothing but the image."""
    evaluator = PersonSearchEvaluator(name, protocols=[protocol])
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        rng = torch.Generator().manual_seed(record["image_id"])
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]]).view(-1, 4)
        pids = [a["person_id"] for a in record["annotations"]]
        noise = 0.4 * torch.randn(len(pids), 32, generator=rng)
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(boxes + 3 * torch.randn(boxes.shape, generator=rng))
        found.scores = 0.4 + 0.6 * torch.rand(len(pids), generator=rng)
        found.pred_classes = torch.zeros(len(pids), dtype=torch.int64)
        axes = torch.eye(32)
        found.reid_feats = torch.nn.functional.normalize(axes[pids] + noise, dim=1)
        ids = [query["query_id"] for query in record["queries"]]
        feats = axes[ids] + 0.3 * torch.randn(len(ids), 32, generator=rng)
        output = {"instances": found, "query_feats": torch.nn.functional.normalize(feats, dim=1)}
        evaluator.process([{"image_id": record["image_id"]}], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("which", ["cuhk_sysu", "prw"])
def test_the_results_are_the_same(which: str, roots, tmp_path: Path) -> None:
    splits = convert_known_format(which, roots[which], tmp_path, "copy")
    protocols = {"cuhk_sysu": {"gallery_sizes": (5, 7)}, "prw": {}}[which]
    register = {"cuhk_sysu": register_cuhk_sysu, "prw": register_prw}[which]
    register("original", roots[which], **protocols)
    test = splits[1]
    register_person_search_json("copy_test", test.path, roots[which])
    try:
        assert set(MetadataCatalog.get("copy_test").search_protocols) == set(test.protocols)
        for name in FORMATS[which].protocols(roots[which]):
            original = noisy_results("original_test", name)
            assert noisy_results("copy_test", name) == original
            assert 0 < original["search"]["mAP"] < 100
    finally:
        for name in ("original_train", "original_test", "copy_test"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


# ---- any records ----------------------------------------------------------------------------

NUMBERS = itertools.count()
coordinates = st.floats(0, 2000, width=64)


@given(coordinates, coordinates)
def test_a_box_comes_back_to_the_last_bit(first: float, second: float) -> None:
    low, high = sorted((first, second))
    x, y, w, h = xyxy_to_xywh([low, low, high, high])
    assert (x + w, y + h) == (high, high)


@st.composite
def data_sets(draw) -> tuple[list[dict], int]:
    """Records of one to five images with up to four boxes each, and the number of persons."""
    persons = draw(st.integers(1, 3))
    records = []
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5, unique=True))
    for place, image_id in enumerate(ids):
        annotations = []
        for _ in range(draw(st.integers(0, 4))):
            x, y = draw(st.floats(0, 100)), draw(st.floats(0, 50))
            w, h = draw(st.floats(1, 50)), draw(st.floats(1, 40))
            annotations.append(
                {
                    "bbox": [x, y, min(x + w, 160.0), min(y + h, 90.0)],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "person_id": draw(st.integers(-1, persons - 1)),
                }
            )
        records.append(
            {
                "file_name": f"{place}.jpg",
                "image_id": image_id,
                "height": 90,
                "width": 160,
                "cam_id": draw(st.sampled_from([None, 0, 1, 2])),
                "annotations": annotations,
            }
        )
    return records, persons


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for place in range(5):
        write_image(folder / f"{place}.jpg", 90, 160, place)
    return folder


@given(data=data_sets())
def test_any_records_come_back(data, images: Path) -> None:
    records, persons = data
    records = [{**r, "file_name": str(images / r["file_name"])} for r in records]
    # a file of its own each time: clocks of file systems are coarse, and the reader looks at them
    path = images / f"{next(NUMBERS)}.json"
    write_document(path, make_document(records, images, persons))
    found = load_person_search_json(path)
    queries = [query for record in found for query in record.pop("queries")]
    assert found == records
    # every query of the rule has a match, and each person in two images is searched for
    protocol = load_json_protocol(path, "all")
    assert set(protocol.positive_query.tolist()) == set(range(len(queries)))
    images_of: dict[int, set] = {}
    for record in records:
        for annotation in record["annotations"]:
            images_of.setdefault(annotation["person_id"], set()).add(record["image_id"])
    wanted = {pid for pid, images in images_of.items() if pid >= 0 and len(images) > 1}
    assert {query.person_id for query in protocol.queries} == wanted


def test_the_file_is_plain_coco(tmp_path: Path, roots) -> None:
    path = convert_known_format("prw", roots["small prw"], tmp_path, "copy")[0].path
    document = json.loads(path.read_text())
    assert document["categories"] == [{"id": 1, "name": "person"}]
    assert document["persons"] == [{"id": 1}, {"id": 3}, {"id": 932}]
    assert document["images"][0] == {
        "id": 0,
        "file_name": "frames/c1s1_000001.jpg",
        "width": 160,
        "height": 90,
        "cam_id": 1,
    }
    assert document["annotations"][1] == {
        "id": 1,
        "image_id": 0,
        "category_id": 1,
        "bbox": [60, 5, 20, 60],
        "person_id": None,
    }
    assert parse_document(document)[1] == []
    assert len(path.read_text().splitlines()) > len(document["annotations"]), "an entry per line"


def test_file_names_start_at_the_output_if_it_holds_the_images(roots, tmp_path: Path) -> None:
    root = roots["small prw"]
    inside = convert_known_format("prw", root, root.parent, "inside")[0]
    assert inside.image_root == root.parent
    records = load_person_search_json(inside.path)  # no image root is needed
    assert records[0]["file_name"] == str(root / "frames/c1s1_000001.jpg")
    outside = convert_known_format("prw", root, tmp_path, "outside")[0]
    assert outside.image_root == root
    assert load_person_search_json(outside.path, root)[0]["file_name"] == records[0]["file_name"]
    with pytest.raises(FileNotFoundError, match="image root"):
        load_person_search_json(outside.path)
