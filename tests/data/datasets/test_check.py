# SPDX-License-Identifier: Apache-2.0
"""The data set check: correct counts, and every irregularity and error with its place."""

from pathlib import Path

import pytest
from json_trees import small_document, write_json_set
from mat_trees import (
    cuhk_sysu_of_training_images,
    small_cuhk_sysu,
    small_prw,
    write_image,
    write_subset,
)

from person_search.data.datasets.check import FORMATS, check_dataset, check_json_dataset


@pytest.fixture
def cuhk_sysu(tmp_path: Path) -> Path:
    return small_cuhk_sysu(tmp_path / "CUHK-SYSU")


@pytest.fixture
def prw(tmp_path: Path) -> Path:
    return small_prw(tmp_path / "PRW")


def test_counts_of_cuhk_sysu(cuhk_sysu: Path) -> None:
    report = check_dataset("cuhk_sysu", cuhk_sysu, compare=False)
    assert report.errors == [] and report.irregularities == []
    assert report.uses == ["training", "evaluation"]
    assert report.found == {
        "images": 7,
        "train images": 3,
        "train boxes": 6,
        "train boxes dropped": 0,
        "train boxes with identity": 4,
        "train images with identity": 3,
        "train identities": 2,
        "test images": 4,
        "test boxes": 7,
        "test boxes dropped": 0,
        "test boxes with identity": 4,
        "test images with identity": 3,
        "queries": 2,
        "query images": 2,
        "test identities": 2,
        "matches in g100": 2,
        "matches in g50": 2,
    }


def test_counts_of_prw(prw: Path) -> None:
    counts = check_dataset("prw", prw, compare=False).found
    assert counts["train identities"] == 3 and counts["queries"] == 3
    assert counts["test boxes"] == 8 and counts["test boxes with identity"] == 5
    assert counts["matches in all"] == 5 and counts["matches in multi_view"] == 4


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_published_counts_are_counted(format_name, cuhk_sysu, prw) -> None:
    root = {"cuhk_sysu": cuhk_sysu, "prw": prw}[format_name]
    row = ("s6.jpg", (260, 5, 30, 80), [("s5.jpg", (80, 5, 40, 80)), ("s7.jpg", None)])
    write_subset(cuhk_sysu, "Occlusion.mat", "Occlusion1", [row])
    write_subset(cuhk_sysu, "Resolution.mat", "Test_Size", [row])
    report = check_dataset(format_name, root)
    assert set(FORMATS[format_name].published) <= set(report.found)
    assert all(count.differs for count in report.counts if count.published is not None)
    assert len(report.errors) == len(FORMATS[format_name].published)


def test_a_synthetic_set_is_not_compared(cuhk_sysu: Path) -> None:
    (cuhk_sysu / "synthetic.json").write_text("{}")
    report = check_dataset("cuhk_sysu", cuhk_sysu)
    assert report.errors == [] and all(count.published is None for count in report.counts)


def test_dropped_boxes_count_as_published_ones_do(tmp_path: Path) -> None:
    images = {
        "s1.jpg": [(1, 5, 40, 80), (9, 9, 0, 50)],
    }
    root = cuhk_sysu_of_training_images(tmp_path / "data", images, [[("s1.jpg", (1, 5, 40, 80))]])
    counts = check_dataset("cuhk_sysu", root, compare=False).found
    assert counts["train boxes"] == 2 and counts["train boxes dropped"] == 1


def test_boxes_over_the_border_are_irregular_and_boxes_outside_wrong(tmp_path: Path) -> None:
    images = {
        "s1.jpg": [(1, 5, 300, 80), (290, 5, 40, 80), (301, 5, 40, 80)],
        "s2.jpg": [(2, 5, 40, 80)],
    }
    root = cuhk_sysu_of_training_images(tmp_path / "data", images, [[("s2.jpg", (2, 5, 40, 80))]])
    report = check_dataset("cuhk_sysu", root, compare=False)
    assert [item.kind for item in report.irregularities] == ["box_over_border"] * 2
    (error,) = report.errors
    assert "s1.jpg" in error and "lies outside" in error


def test_a_query_without_a_match_is_an_error(tmp_path: Path) -> None:
    rows = [
        [("s5.jpg", (20, 5, 40, 80)), ("s7.jpg", None)],
        [("s6.jpg", None), ("s7.jpg", None)],
    ]
    root = small_cuhk_sysu(tmp_path / "data", galleries={100: rows})
    (error,) = check_dataset("cuhk_sysu", root, compare=False).errors
    assert "TestG100.mat: query 2 has no match" in error


def test_protocols_with_different_queries_are_an_error(cuhk_sysu: Path, tmp_path: Path) -> None:
    other = small_cuhk_sysu(
        tmp_path / "other", queries=[("s5.jpg", (20, 5, 40, 80)), ("s4.jpg", (200, 5, 60, 80))]
    )
    name = "annotation/test/train_test/TestG50.mat"
    (cuhk_sysu / name).write_bytes((other / name).read_bytes())
    (error,) = check_dataset("cuhk_sysu", cuhk_sysu, compare=False).errors
    assert "g50 has other queries than g100" in error


def test_unreadable_images_are_errors(cuhk_sysu: Path) -> None:
    folder = cuhk_sysu / "Image" / "SSM"
    (folder / "s2.jpg").write_bytes(b"not an image")
    write_image(folder / "s5.jpg", 120, 300)
    content = (folder / "s5.jpg").read_bytes()
    (folder / "s5.jpg").write_bytes(content[: len(content) // 2])
    (error,) = check_dataset("cuhk_sysu", cuhk_sysu, compare=False).errors
    assert "s2.jpg" in error
    errors = check_dataset("cuhk_sysu", cuhk_sysu, compare=False, decode=True).errors
    assert any("s5.jpg: cannot be decoded" in error for error in errors)


def test_one_bad_split_does_not_hide_the_other(prw: Path) -> None:
    (prw / "query_info.txt").write_text("nonsense\n")
    report = check_dataset("prw", prw, compare=False)
    (error,) = report.errors
    assert "query_info.txt:1" in error
    assert report.found["train images"] == 2


# ---- own data: a JSON file ------------------------------------------------------------------


def test_a_good_file(tmp_path: Path) -> None:
    path = write_json_set(tmp_path)
    report = check_json_dataset(path, decode=True)
    assert report.errors == [] and report.irregularities == []
    assert report.found == {
        "images": 4,
        "cameras": 2,
        "boxes": 7,
        "boxes left out": 0,
        "boxes with identity": 5,
        "images with identity": 4,
        "identities": 2,
        "identities in several images": 2,
        "queries": 4,
        "queries of all": 4,
        "matches in all": 6,
        "queries of multi_view": 4,
        "matches in multi_view": 5,
    }


def test_queries_without_a_match_and_irregular_galleries(tmp_path: Path) -> None:
    queries = [{"annotation_id": 101}, {"annotation_id": 104}]
    document = small_document(queries=queries, galleries=[[11, 12, 12], [11]])
    report = check_json_dataset(write_json_set(tmp_path, document))
    (error,) = report.errors
    assert "query 2 has no match in the gallery of listed" in error
    assert sorted(item.kind for item in report.irregularities) == ["listed_twice", "own_image"]


def without_identities(**attributes: object) -> dict:
    document = small_document()
    for annotation in document["annotations"]:
        del annotation["person_id"]
        annotation["attributes"] = {"occluded": False, **attributes}
    return document


@pytest.mark.parametrize(
    ("document", "uses", "note"),
    [
        (small_document(), ["training", "evaluation"], None),
        (without_identities(), ["detection only"], "no annotation has a person_id"),
        (without_identities(person_id="7"), ["detection only"], "attributes has 'person_id'"),
        (without_identities(track_id=7), ["detection only"], "attributes has 'track_id'"),
        (small_document(annotations=[]), [], "no annotation has a person_id"),
        (
            small_document(annotations=small_document()["annotations"][:2]),
            ["training"],
            "no person is labeled in two images",
        ),
    ],
)
def test_what_a_file_is_fit_for(tmp_path: Path, document: dict, uses: list, note: str) -> None:
    report = check_json_dataset(write_json_set(tmp_path, document))
    assert report.errors == [] and report.uses == uses
    assert [note in line for line in report.notes] == ([] if note is None else [True])
