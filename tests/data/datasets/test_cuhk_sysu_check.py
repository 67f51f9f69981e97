# SPDX-License-Identifier: Apache-2.0
"""The check of CUHK-SYSU's subsets: missing files are noted, broken ones reported in one line."""

from pathlib import Path

import numpy as np
import pytest
from mat_trees import small_cuhk_sysu, write_subset
from scipy.io import savemat

from person_search.data.datasets.check import CheckReport, check_dataset

S4, S5, S6 = (200, 5, 60, 80), (80, 5, 40, 80), (260, 5, 30, 80)
"""Boxes of the queries of g100 in s4 and s5; s6 holds the match of the second one."""
GOOD = [
    ("s5.jpg", S5, [("s6.jpg", S6), ("s7.jpg", None)]),
    ("s6.jpg", S6, [("s5.jpg", S5), ("s4.jpg", None)]),
]
OCCLUSION, RESOLUTION = ("Occlusion.mat", "Occlusion1"), ("Resolution.mat", "Test_Size")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_cuhk_sysu(tmp_path / "CUHK-SYSU")


def check(root: Path) -> CheckReport:
    return check_dataset("cuhk_sysu", root, compare=False)


def test_sound_subsets(root: Path) -> None:
    write_subset(root, *OCCLUSION, GOOD)
    write_subset(root, *RESOLUTION, GOOD[:1])
    report = check(root)
    assert report.errors == [] and report.irregularities == [] and report.notes == []
    found = report.found
    assert found["queries of occlusion"] == 2 and found["queries of low_resolution"] == 1
    assert found["matches in occlusion"] == 2 and found["queries"] == 2


def test_absent_subsets_are_a_note(root: Path) -> None:
    write_subset(root, *OCCLUSION, GOOD)
    report = check(root)
    (note,) = report.notes
    assert "Resolution.mat does not exist" in note and "'low_resolution'" in note
    assert report.errors == []


def test_the_original_numbers_of_queries(root: Path) -> None:
    write_subset(root, *OCCLUSION, GOOD)
    errors = check_dataset("cuhk_sysu", root, compare=True).errors
    assert "queries of occlusion: 2, but 187 are published" in errors
    assert not any("low_resolution" in error for error in errors)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_file_cut_off(root: Path) -> None:
    write_subset(root, *OCCLUSION, GOOD)
    cut(root / "annotation/test/subset/Occlusion.mat")
    report = check(root)
    (error,) = report.errors
    assert "Occlusion.mat is not a readable MATLAB file" in error and "copy it again" in error
    found = report.found
    assert found["test images"] == 4 and found["queries"] == 2, "the rest is still looked at"
    assert "queries of occlusion" not in found


def test_a_file_of_something_else(root: Path) -> None:
    path = root / "annotation/test/subset/Resolution.mat"
    path.parent.mkdir(parents=True)
    savemat(path, {"Other": np.zeros((1, 1))})
    (error,) = check(root).errors
    assert "Resolution.mat" in error and "'Other'" in error and "'Test_Size'" in error


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (("s1.jpg", (1, 5, 40, 80), GOOD[0][2]), "1 of its images are not among those of"),
        (("s5.jpg", S5, [("s6.jpg", S6), ("s99.jpg", None)]), "the first: 's99.jpg'"),
        (("s5.jpg", (0, 0, 20, 20), GOOD[0][2]), "entry 2, query: the box [0.0, 0.0, 20.0, 20.0]"),
        (("s5.jpg", S5, [("s7.jpg", S6)]), "entry 2, gallery: the box [260.0, 5.0, 30.0, 80.0]"),
        (("s5.jpg", S5, [("s7.jpg", S6)]), "none of the 1 boxes that annotation/Images.mat has in"),
        (("s5.jpg", S5, [("s4.jpg", S4), ("s6.jpg", S6)]), "g100 has another person there"),
        (("s5.jpg", S5, [("s7.jpg", None), ("s6.jpg", None)]), "query 2 has no match"),
        (("s5.jpg", None, GOOD[0][2]), "Occlusion1(2).Query: the query has no box"),
    ],
)
def test_a_contradiction(root: Path, row: tuple, text: str) -> None:
    write_subset(root, *OCCLUSION, [GOOD[1], row])
    write_subset(root, *RESOLUTION, GOOD)
    report = check(root)
    (error,) = report.errors
    assert text in error and "Occlusion.mat" in error and len(error.splitlines()) == 1
    assert report.found["test images"] == 4


def test_many_images_of_another_set_are_one_line(root: Path) -> None:
    gallery = [("s6.jpg", S6), *((f"t{number}.jpg", None) for number in range(30))]
    write_subset(root, *OCCLUSION, [("s5.jpg", S5, gallery)])
    (error,) = check(root).errors
    assert "30 of its images" in error and "'t0.jpg'" in error


def test_a_slightly_different_box_is_irregular_but_usable(root: Path) -> None:
    moved = (258, 6, 31, 80)
    write_subset(root, *OCCLUSION, [("s5.jpg", S5, [("s6.jpg", moved), ("s7.jpg", None)])])
    report = check(root)
    assert report.errors == []
    (item,) = report.irregularities
    assert item.kind == "subset_box" and "entry 1, gallery" in item.where


def test_an_empty_subset(root: Path) -> None:
    write_subset(root, *OCCLUSION, [])
    (error,) = check(root).errors
    assert "Occlusion.mat" in error and "no queries" in error
