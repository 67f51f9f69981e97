# SPDX-License-Identifier: Apache-2.0
"""The data set check: right counts, every oddity with its place, non-zero for a broken set."""

import importlib.util
from pathlib import Path

import pytest
from json_trees import small_document, write_json_set
from mat_trees import small_cuhk_sysu, small_prw, write_image, write_subset

from person_search.data.datasets.check import FORMATS, check_dataset
from person_search.data.datasets.check import check_json_dataset


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).resolve().parents[3] / "tools" / "check_dataset.py"
    spec = importlib.util.spec_from_file_location("check_dataset_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cuhk_sysu(tmp_path: Path) -> Path:
    return small_cuhk_sysu(tmp_path / "CUHK-SYSU")


@pytest.fixture
def prw(tmp_path: Path) -> Path:
    return small_prw(tmp_path / "PRW")


def found(report) -> dict[str, int]:
    return {count.what: count.found for count in report.counts}


def test_counts_of_cuhk_sysu(cuhk_sysu: Path) -> None:
    report = check_dataset("cuhk_sysu", cuhk_sysu, compare=False)
    assert report.errors == [] and report.irregularities == []
    assert found(report) == {
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
    counts = found(check_dataset("prw", prw, compare=False))
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
    assert set(FORMATS[format_name].published) <= set(found(report))
    assert all(count.differs for count in report.counts if count.published is not None)
    assert len(report.errors) == len(FORMATS[format_name].published)


def test_a_synthetic_set_is_not_compared(cuhk_sysu: Path) -> None:
    (cuhk_sysu / "synthetic.json").write_text("{}")
    report = check_dataset("cuhk_sysu", cuhk_sysu)
    assert report.errors == [] and all(count.published is None for count in report.counts)


def test_dropped_boxes_count_as_published_ones_do(tmp_path: Path) -> None:
    images = {
        "s1.jpg": [(1, 5, 40, 80), (9, 9, 0, 50)],
        "s4.jpg": [(10, 5, 40, 80)],
        "s5.jpg": [(20, 5, 40, 80)],
    }
    root = small_cuhk_sysu(
        tmp_path / "data",
        images=images,
        pool=["s4.jpg", "s5.jpg"],
        train=[[("s1.jpg", (1, 5, 40, 80))]],
        queries=[("s4.jpg", (10, 5, 40, 80))],
        galleries={100: [[("s5.jpg", (20, 5, 40, 80))]]},
    )
    counts = found(check_dataset("cuhk_sysu", root, compare=False))
    assert counts["train boxes"] == 2 and counts["train boxes dropped"] == 1


def test_boxes_over_the_border_are_odd_and_boxes_outside_wrong(tmp_path: Path) -> None:
    images = {
        "s1.jpg": [(1, 5, 300, 80), (290, 5, 40, 80), (301, 5, 40, 80)],
        "s2.jpg": [(2, 5, 40, 80)],
        "s4.jpg": [(10, 5, 40, 80)],
        "s5.jpg": [(20, 5, 40, 80)],
    }
    root = small_cuhk_sysu(
        tmp_path / "data",
        images=images,
        pool=["s4.jpg", "s5.jpg"],
        train=[[("s2.jpg", (2, 5, 40, 80))]],
        queries=[("s4.jpg", (10, 5, 40, 80))],
        galleries={100: [[("s5.jpg", (20, 5, 40, 80))]]},
    )
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
    assert found(report)["train images"] == 2


def test_the_command_on_a_good_set(tool, cuhk_sysu: Path, capsys) -> None:
    args = ["cuhk_sysu", "--root", str(cuhk_sysu), "--no-compare"]
    assert tool.main(args) == 0
    output = capsys.readouterr().out
    assert "train identities" in output and "Fit for use" in output
    assert "published" not in output


def test_the_command_compares_and_fails_on_a_difference(tool, prw: Path, capsys) -> None:
    assert tool.main(["prw", "--root", str(prw)]) == 1
    output = capsys.readouterr().out
    assert "11,816" in output and "differs" in output and "483 are published" in output


def test_the_command_lists_oddities_up_to_the_limit(tool, tmp_path: Path, capsys) -> None:
    frames = {
        "c1s1_000001": [(1, -5, 5, 20, 60), (3, -5, 5, 20, 60), (932, 150, 5, 20, 60)],
        "c1s1_000101": [(479, 20, 10, 25, 70)],
        "c2s1_000101": [(479, 40, 10, 25, 70)],
    }
    root = small_prw(
        tmp_path / "PRW",
        frames=frames,
        train=["c1s1_000001"],
        test=["c1s1_000101", "c2s1_000101"],
        test_ids=[479, 481],
        queries=[(479, 20, 10, 25, 70, "c1s1_000101")],
    )
    args = ["prw", "--root", str(root), "--no-compare"]
    assert tool.main(args) == 0
    output = capsys.readouterr().out
    assert "clipped: 3" in output and output.count("c1s1_000001.jpg.mat: row") == 3
    assert tool.main([*args, "--limit", "1"]) == 0
    output = capsys.readouterr().out
    assert output.count("c1s1_000001.jpg.mat: row") == 1 and "and 2 more" in output


def test_the_command_names_what_is_not_there(tool, cuhk_sysu: Path, capsys) -> None:
    assert tool.main(["cuhk_sysu", "--root", str(cuhk_sysu), "--no-compare"]) == 0
    printed = capsys.readouterr().out
    assert "Not there: 2" in printed and "Occlusion.mat does not exist" in printed
    assert "Fit for use" in printed


def test_the_command_on_a_missing_set(tool, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert tool.main(["synthetic_prw"]) == 1
    output = capsys.readouterr().out
    assert "PRW was not found" in output and "frame_train.mat" in output


# ---- own data: a JSON file ------------------------------------------------------------------


def test_a_good_file(tool, tmp_path: Path, capsys) -> None:
    path = write_json_set(tmp_path)
    report = check_json_dataset(path, decode=True)
    assert report.errors == [] and report.irregularities == []
    assert found(report) == {
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
    assert tool.main([str(path), "--decode"]) == 0
    assert "Fit for use" in capsys.readouterr().out


def test_a_bad_file_shows_everything_at_once(tool, tmp_path: Path, capsys) -> None:
    document = small_document()
    document["annotations"][0]["image_id"] = 99
    document["annotations"][1]["bbox"] = [float("nan"), 1, 2, 3]
    document["annotations"][2]["bbox"] = [500, 5, 20, 60]
    document["annotations"][3]["bbox"] = [50, 5, -20, 60]
    document["annotations"][4]["bbox"] = [150, 5, 20, 60]
    document["images"][3]["file_name"] = "a/1.jpg"
    path = write_json_set(tmp_path, document)
    (tmp_path / "b/1.jpg").write_bytes(b"not an image")
    (tmp_path / "a/2.jpg").unlink()
    assert tool.main([str(path)]) == 1
    output = capsys.readouterr().out
    for text in (
        "annotations[0]: image_id 99 is not among the images",
        "annotations[1]: bbox is [nan, 1, 2, 3], which is not finite",
        "annotations[2]: the box [500.0, 5.0, 20.0, 60.0]",
        "annotations[3]: the box [50.0, 5.0, -20.0, 60.0] has a negative",
        "images[3]: file_name 'a/1.jpg' is already used by images[0]",
        "b/1.jpg: cannot be decoded",
        "a/2.jpg: the file does not exist",
        "annotations[4], b/1.jpg: [150.0, 5.0, 20.0, 60.0]",
        "Errors: 7",
    ):
        assert text in output, text


def test_queries_without_a_match_and_odd_galleries(tmp_path: Path) -> None:
    queries = [{"annotation_id": 101}, {"annotation_id": 104}]
    document = small_document(queries=queries, galleries=[[11, 12, 12], [11]])
    report = check_json_dataset(write_json_set(tmp_path, document))
    (error,) = report.errors
    assert "query 2 has no match in the gallery of listed" in error
    assert sorted(item.kind for item in report.irregularities) == ["listed_twice", "own_image"]


def test_a_file_that_is_not_json(tool, tmp_path: Path, capsys) -> None:
    path = tmp_path / "own.json"
    assert tool.main([str(path)]) == 1
    assert "does not exist" in capsys.readouterr().out
    path.write_text("{")
    assert tool.main([str(path)]) == 1
    assert "the file is not JSON" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [
        ["coco"],
        ["prw", "--limit", "-1"],
        ["prw", "--image-root", "x"],
        ["own.json", "--root", "x"],
        ["own.json", "--compare"],
    ],
)
def test_a_wrong_command_line(tool, args: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        tool.main(args)
    assert raised.value.code == 2
