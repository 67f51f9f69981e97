# SPDX-License-Identifier: Apache-2.0
"""The record check, and that the checks to inherit can fail."""

import copy

import numpy as np
import pytest

from person_search.data.datasets.common import IrregularityLog
from person_search.schema import Query, SearchProtocol, record_problems
from person_search.testing import PersonSearchDatasetTests


def good_record(**changes: object) -> dict:
    record = {
        "file_name": "a.jpg",
        "image_id": 0,
        "height": 60,
        "width": 100,
        "cam_id": None,
        "annotations": [
            {"bbox": [0.0, 5.0, 30.0, 50.0], "bbox_mode": 0, "category_id": 0, "person_id": -1}
        ],
        "queries": [{"query_id": 0, "bbox": [0.0, 5.0, 30.0, 50.0], "bbox_mode": 0}],
    }
    return record | changes


def test_a_good_record_has_no_problems() -> None:
    assert record_problems(good_record(), is_test=True) == []
    train = good_record(cam_id=3)
    del train["queries"]
    assert record_problems(train, is_test=False) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"file_name": 7}, "file_name is 7"),
        ({"image_id": "a"}, "image_id is 'a'"),
        ({"image_id": np.int64(1)}, "image_id is"),
        ({"cam_id": "c1"}, "cam_id is 'c1'"),
        ({"height": 0}, "size (0, 100)"),
        ({"queries": None}, "queries is None"),
    ],
)
def test_bad_fields_of_a_record(changes: dict, problem: str) -> None:
    assert any(problem in found for found in record_problems(good_record(**changes), True))


def test_an_absent_field_is_named() -> None:
    record = good_record()
    del record["queries"], record["cam_id"]
    assert record_problems(record, True) == ["cam_id is absent", "queries is absent"]
    assert record_problems(record, False) == ["cam_id is absent"]


@pytest.mark.parametrize("key", ["annotations", "queries"])
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bbox": [1, 2, 3]}, "four XYXY numbers"),
        ({"bbox": None}, "four XYXY numbers"),
        ({"bbox_mode": 1}, "four XYXY numbers"),
        ({"bbox": [0, 0, float("nan"), 5]}, "not finite"),
        ({"bbox": [5, 5, 5, 20]}, "no area"),
        ({"bbox": [100, 5, 110, 20]}, "outside"),
        ({"bbox": [-3, 5, 110, 20]}, "10 pixels over the border"),
    ],
)
def test_bad_boxes(key: str, changes: dict, problem: str) -> None:
    record = good_record()
    record[key][0] |= changes
    (found,) = record_problems(record, True)
    assert problem in found and found.startswith(("annotation 0", "query 0"))


def test_boxes_may_reach_over_the_border_by_the_tolerance() -> None:
    record = good_record()
    record["annotations"][0]["bbox"] = [-1.0, 5.0, 30.0, 61.0]
    assert record_problems(record, True, tolerance=1.0) == []
    assert len(record_problems(record, True, tolerance=0.5)) == 1


def test_bad_numbers_of_persons_and_queries() -> None:
    record = good_record()
    record["annotations"][0] |= {"person_id": -2, "category_id": 1}
    record["queries"][0]["query_id"] = None
    found = record_problems(record, True)
    assert [problem.split(": ")[0] for problem in found] == ["annotation 0"] * 2 + ["query 0"]


class Tiny(PersonSearchDatasetTests):
    """Two training images; one query in the first of two test images, its match in the second."""

    def load(self, split):
        def image(image_id, pids, queries=()):
            boxes = [[10.0 * pid + 20, 5.0, 10.0 * pid + 28, 50.0] for pid in pids]
            annotations = [
                {"bbox": box, "bbox_mode": 0, "category_id": 0, "person_id": pid}
                for box, pid in zip(boxes, pids, strict=True)
            ]
            return good_record(
                file_name=f"{split}{image_id}.jpg",
                image_id=image_id,
                annotations=annotations,
                queries=[
                    {"query_id": q, "bbox": [20.0, 5.0, 28.0, 50.0], "bbox_mode": 0}
                    for q in queries
                ],
            )

        if split == "train":
            return [image(0, [0, -1]), image(1, [1, 0])]
        return [image(0, [0], [0]), image(1, [-1, 0])]

    def load_protocols(self):
        return [
            SearchProtocol(
                name="all",
                queries=[Query(0, 0, (20.0, 5.0, 28.0, 50.0), 0)],
                gallery=np.array([[1]], np.int32),
                positive_query=np.array([0]),
                positive_image=np.array([1]),
                positive_box=np.array([[20.0, 5, 28, 50]], np.float32),
            )
        ]


CHECKS = [name for name in dir(PersonSearchDatasetTests) if name.startswith("test_")]


@pytest.mark.parametrize("check", CHECKS)
def test_a_good_data_set_passes(check: str) -> None:
    getattr(Tiny(), check)()


def break_records(split: str, change) -> type[Tiny]:
    class Broken(Tiny):
        def load(self, asked):
            records = copy.deepcopy(super().load(asked))
            if asked == split:
                change(records)
            return records

    return Broken


def break_protocol(**changes: object) -> type[Tiny]:
    class Broken(Tiny):
        def load_protocols(self):
            (protocol,) = super().load_protocols()
            for key, value in changes.items():
                setattr(protocol, key, value)
            return [protocol]

    return Broken


class Unstable(Tiny):
    calls = 0

    def load(self, split):
        Unstable.calls += 1
        return super().load(split)[:: 1 if Unstable.calls % 2 else -1]


BROKEN = {
    "test_records_follow_the_schema": break_records("test", lambda r: r[1].pop("queries")),
    "test_order_is_stable": Unstable,
    "test_ids_and_files_are_unique": break_records("test", lambda r: r[0].update(image_id=1)),
    "test_splits_share_no_image": break_records(
        "test", lambda r: r[0].update(file_name="train0.jpg")
    ),
    "test_train_pids_are_contiguous": break_records(
        "train", lambda r: r[1]["annotations"][0].update(person_id=5)
    ),
    "test_records_and_protocols_have_the_same_queries": break_records(
        "test", lambda r: r[0]["queries"].clear()
    ),
    "test_each_query_has_a_match": break_protocol(positive_query=np.zeros(0, np.int32)),
    "test_matches_are_in_the_gallery": break_protocol(gallery=np.array([[0]], np.int32)),
    "test_matches_are_boxes_of_the_person": break_protocol(
        positive_box=np.array([[0.0, 5, 28, 50]], np.float32)
    ),
    "test_protocols_name_images_of_the_test_split": break_protocol(
        gallery=np.array([[1, 9]], np.int32)
    ),
}


@pytest.mark.parametrize("check", CHECKS)
def test_each_check_can_fail(check: str) -> None:
    with pytest.raises(AssertionError):
        getattr(BROKEN[check](), check)()


def test_excluded_images_are_no_matches() -> None:
    broken = break_protocol(gallery=None, excluded=np.array([[0, 1]], np.int32))
    with pytest.raises(AssertionError):
        broken().test_matches_are_in_the_gallery()


def test_a_data_set_must_define_both_methods() -> None:
    for method in ("load_protocols", "load"):
        with pytest.raises(NotImplementedError):
            getattr(PersonSearchDatasetTests(), method)(*(["train"] if method == "load" else []))


def test_only_known_irregularities_can_be_logged() -> None:
    with pytest.raises(ValueError, match="'flying'.*zero_size_box"):
        IrregularityLog().add("flying", "a.jpg", "")
