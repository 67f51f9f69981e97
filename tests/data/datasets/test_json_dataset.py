# SPDX-License-Identifier: Apache-2.0
"""Data sets from a COCO-style JSON: records, identities, queries and protocols."""

import json
from pathlib import Path

import numpy as np
import pytest
from json_trees import small_document, write_json_set

from person_search.data import (
    IncompleteDatasetError,
    IrregularityLog,
    load_json_protocol,
    load_person_search_json,
)
from person_search.data.datasets.json_dataset import count_json_pids
from person_search.schema import record_problems
from person_search.testing import PersonSearchDatasetTests


@pytest.fixture(scope="module")
def shared_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {split: write_json_set(folder / split) for split in ("train", "test")}


class TestJsonSet(PersonSearchDatasetTests):
    """The same file twice: as training and as test set."""

    @pytest.fixture(autouse=True)
    def _files(self, shared_files: dict[str, Path]) -> None:
        self.files = shared_files

    def load(self, split):
        return load_person_search_json(self.files[split])

    def load_protocols(self):
        return [load_json_protocol(self.files["test"], name) for name in ("all", "multi_view")]


def boxes_of(record: dict) -> list[tuple]:
    return [(*a["bbox"], a["person_id"]) for a in record["annotations"]]


def test_records(tmp_path: Path) -> None:
    path = write_json_set(tmp_path)
    records = load_person_search_json(path)
    assert [record["image_id"] for record in records] == [11, 12, 13, 14]
    assert [record["cam_id"] for record in records] == [1, 1, 2, 2]
    assert records[2]["file_name"] == str(tmp_path / "b/1.jpg")
    # person_id 3 becomes 0, 7 becomes 1
    assert boxes_of(records[0]) == [(10, 5, 30, 65, 1), (60, 5, 80, 65, -1)]
    assert boxes_of(records[1]) == [(15.5, 5, 35.75, 65, 1), (90, 5, 110, 65, 0)]
    assert boxes_of(records[2]) == [(30, 5, 55, 75, 1), (100, 5, 125, 75, -1)]
    assert not any(record_problems(record, is_test=True) for record in records)
    assert count_json_pids(path) == 2


def test_the_cache_gives_the_same_and_notices_a_change(tmp_path: Path) -> None:
    path = write_json_set(tmp_path)
    first = load_person_search_json(path)
    assert list((tmp_path / ".person_search").glob("set.json.v*.npz"))
    from person_search.data.datasets.json_dataset import _read_table

    _read_table.cache_clear()
    assert load_person_search_json(path) == first
    document = small_document()
    document["annotations"].pop()
    write_json_set(tmp_path, document)
    assert load_person_search_json(path) != first


def test_queries_by_rule_are_the_largest_boxes_per_camera(tmp_path: Path) -> None:
    path = write_json_set(tmp_path)
    protocol = load_json_protocol(path, "all")
    found = [(q.query_id, q.person_id, q.cam_id, q.image_id) for q in protocol.queries]
    # person 0 (3) in both cameras; person 1 (7): images 11 and 12 in camera 1, the latter larger
    assert found == [(0, 0, 1, 12), (1, 0, 2, 14), (2, 1, 1, 12), (3, 1, 2, 13)]
    attached = {
        query["query_id"]: record["image_id"]
        for record in load_person_search_json(path)
        for query in record["queries"]
    }
    assert attached == {0: 12, 1: 14, 2: 12, 3: 13}


def test_without_cameras_there_is_one_query_per_person(tmp_path: Path) -> None:
    document = small_document()
    for image in document["images"]:
        del image["cam_id"]
    document["annotations"].append({"id": 9, "image_id": 14, "bbox": [1, 1, 9, 9], "person_id": 8})
    path = write_json_set(tmp_path, document)
    queries = load_json_protocol(path, "all").queries
    # 8 is in one image only, so there is nothing to find
    assert [(q.person_id, q.image_id, q.cam_id) for q in queries] == [(0, 14, None), (1, 13, None)]
    with pytest.raises(
        ValueError, match="no protocol 'multi_view'; available: .'all'.*needs cam_id"
    ):
        load_json_protocol(path, "multi_view")


def test_protocol_all_leaves_out_the_own_image(tmp_path: Path) -> None:
    protocol = load_json_protocol(write_json_set(tmp_path), "all")
    assert protocol.gallery is None
    assert protocol.excluded.tolist() == [[12], [14], [12], [13]]
    matches = list(
        zip(protocol.positive_query.tolist(), protocol.positive_image.tolist(), strict=True)
    )
    assert matches == [(0, 14), (1, 12), (2, 11), (2, 13), (3, 11), (3, 12)]
    assert protocol.positive_box[1].tolist() == [90, 5, 110, 65]
    assert protocol.positive_box.dtype == np.float32


def test_protocol_multi_view_searches_other_cameras(tmp_path: Path) -> None:
    document = small_document()
    # 5 is in two images of camera 1: searched by all, not by multi_view
    document["annotations"] += [
        {"id": 1, "image_id": 11, "bbox": [5, 5, 40, 50], "person_id": 5},
        {"id": 2, "image_id": 12, "bbox": [5, 5, 30, 50], "person_id": 5},
    ]
    path = write_json_set(tmp_path, document)
    assert len(load_json_protocol(path, "all").queries) == 5
    protocol = load_json_protocol(path, "multi_view")
    assert [q.query_id for q in protocol.queries] == [0, 1, 3, 4]
    assert protocol.excluded.tolist() == [[11, 12], [13, 14]]
    assert protocol.excluded_row.tolist() == [0, 1, 0, 1]
    assert protocol.positive_image.tolist() == [14, 12, 13, 11, 12]


def test_queries_galleries_and_protocols_of_the_file(tmp_path: Path) -> None:
    document = small_document(
        queries=[
            {"id": 40, "annotation_id": 107},
            {"id": 41, "image_id": 11, "bbox": [11, 6, 18, 50], "person_id": 7},
        ],
        galleries=[[12, 13], [13, 14, 12, 13]],
        protocols={
            "small": {"galleries": [[12], None]},
            "stated": {
                "galleries": [[12, 13], [12]],
                "matches": [{"query_id": 41, "image_id": 12, "bbox": [1, 2, 3, 4]}],
            },
        },
    )
    path = write_json_set(tmp_path, document)
    records = load_person_search_json(path)
    assert [[q["query_id"] for q in r["queries"]] for r in records] == [[41], [], [], [40]]
    assert records[0]["queries"][0]["bbox"] == [11, 6, 29, 56]

    listed = load_json_protocol(path, "listed")
    assert listed.gallery.tolist() == [[12, 13, -1, -1], [13, 14, 12, 13]]
    assert listed.positive_query.tolist() == [0, 1, 1, 1]
    assert listed.positive_image.tolist() == [12, 13, 12, 13], "as often as listed"
    small = load_json_protocol(path, "small")
    assert [q.query_id for q in small.queries] == [40]
    assert small.gallery.tolist() == [[12]] and small.positive_image.tolist() == [12]
    stated = load_json_protocol(path, "stated")
    assert stated.positive_query.tolist() == [1] and stated.positive_box.tolist() == [[1, 2, 4, 6]]
    assert load_json_protocol(path, "all").positive_image.tolist() == [12, 12, 13]


def test_identities_may_be_named_and_listed(tmp_path: Path) -> None:
    document = small_document(persons=[{"id": "zoe"}, {"id": "anna"}, {"id": "bert"}])
    for annotation in document["annotations"]:
        annotation["person_id"] = {7: "anna", 3: "bert"}.get(annotation["person_id"])
    path = write_json_set(tmp_path, document)
    assert boxes_of(load_person_search_json(path)[1])[0][-1] == 1
    assert count_json_pids(path) == 3
    del document["persons"]
    path = write_json_set(tmp_path, document)
    assert boxes_of(load_person_search_json(path)[1])[0][-1] == 0 and count_json_pids(path) == 2


def test_sizes_may_be_left_to_the_images(tmp_path: Path) -> None:
    document = small_document()
    for image in document["images"]:
        del image["height"], image["width"]
    records = load_person_search_json(write_json_set(tmp_path, document))
    assert {(record["height"], record["width"]) for record in records} == {(90, 160)}


def test_an_image_root_of_its_own(tmp_path: Path) -> None:
    write_json_set(tmp_path / "images")
    path = tmp_path / "set.json"
    path.write_text(json.dumps(small_document()))
    records = load_person_search_json(path, tmp_path / "images")
    assert records[0]["file_name"] == str(tmp_path / "images" / "a/1.jpg")
    with pytest.raises(IncompleteDatasetError, match="4 of the 4 images.*image root"):
        load_person_search_json(path)


def test_crowds_other_categories_and_empty_boxes_are_left_out(tmp_path: Path) -> None:
    document = small_document(categories=[{"id": 1, "name": "Person"}, {"id": 3, "name": "car"}])
    for annotation in document["annotations"]:
        annotation["category_id"] = 1
    document["annotations"][1]["category_id"] = 3
    document["annotations"][3]["iscrowd"] = 1
    document["annotations"][5]["bbox"] = [5, 5, 0, 10]
    log = IrregularityLog()
    records = load_person_search_json(write_json_set(tmp_path, document), irregularities=log)
    assert [len(record["annotations"]) for record in records] == [1, 1, 1, 1]
    assert sorted(item.kind for item in log) == ["crowd", "other_category", "zero_size_box"]
    assert "annotations[3], a/2.jpg" in next(i.where for i in log if i.kind == "crowd")


def test_irregular_boxes_are_logged(tmp_path: Path) -> None:
    document = small_document()
    document["annotations"][1] |= {"bbox": [150, 5, 20, 60], "person_id": 7}
    document["annotations"][-1]["image_id"] = 13
    log = IrregularityLog()
    records = load_person_search_json(write_json_set(tmp_path, document), irregularities=log)
    assert records[0]["annotations"][1]["bbox"] == [150, 5, 170, 65], "kept, the mapper clips"
    assert {item.kind for item in log} == {"box_over_border", "twice_in_image", "no_boxes"}


def test_no_identity_is_an_error_for_training_only(tmp_path: Path) -> None:
    document = small_document()
    for annotation in document["annotations"]:
        annotation["person_id"] = None
    path = write_json_set(tmp_path, document)
    assert len(load_person_search_json(path)) == 4
    with pytest.raises(ValueError, match="no annotation has a person_id"):
        count_json_pids(path)
