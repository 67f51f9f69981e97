# SPDX-License-Identifier: Apache-2.0
"""tools/convert_dataset.py: its files, the config that it prints, and its exit status."""

import json
from pathlib import Path

import pytest
from dataset_trees import (
    cvat_box,
    write_cdps,
    write_cvat_images,
    write_movienet,
    write_posetrack21,
)
from mat_trees import small_prw
from programs import run_program_file


def convert(*arguments: object) -> int:
    return run_program_file("tools/convert_dataset.py", *arguments)


def test_the_files_and_the_config(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = small_prw(tmp_path / "PRW")
    args = ["prw", "--root", root, "--output", tmp_path / "own"]
    assert convert(*args) == 0
    shown = capsys.readouterr()
    assert "writing the test split" in shown.err and "identities" in shown.out
    assert "- [prw_json_test, own/prw_json_test.json, PRW]" in shown.out
    assert 'TRAIN: ("prw_json_train",)' in shown.out
    assert convert(*args) == 2
    assert "exists: choose another --name" in capsys.readouterr().err
    assert convert(*args, "--overwrite") == 0


@pytest.mark.parametrize(
    ("name", "write", "folder"),
    [
        ("posetrack21", write_posetrack21, "PoseTrack21"),
        ("movienet", write_movienet, "MovieNet-PS"),
        ("cdps", write_cdps, "CDPS"),
    ],
)
def test_other_data_sets(tmp_path: Path, capsys, monkeypatch, name: str, write, folder) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write(tmp_path / folder)
    assert convert(name) == 0
    assert f"- [{name}_json_test, {folder}/{name}_json_test.json]" in capsys.readouterr().out
    document = json.loads((tmp_path / folder / f"{name}_json_test.json").read_text())
    assert document["queries"] and not document["images"][0]["file_name"].startswith("/")
    assert convert(name, "--output", tmp_path / "other") == 0
    assert f"other/{name}_json_train.json, {folder}]" in capsys.readouterr().out


def test_an_export_of_cvat(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    boxes = [cvat_box(10, "anna"), cvat_box(90, "bert")]
    file = write_cvat_images(tmp_path / "mine", {"a/1.jpg": boxes, "a/2.jpg": boxes, "b/3.jpg": []})
    assert convert("cvat", file) == 0
    shown = capsys.readouterr()
    assert "using the label as identity" in shown.err
    assert "- [mine, mine/mine.json]" in shown.out and 'TRAIN: ("mine",)' in shown.out
    assert convert("cvat", file) == 2
    assert convert("cvat", file, "--split", "folder", "--test-folders", "b") == 2
    assert "the test split by sequence would have 1 frames with 0 ident" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cuhk_sysu", "--root"), "CUHK-SYSU is incomplete"),
        (("posetrack21", "--root"), "PoseTrack21 is incomplete"),
        (("movienet", "--root"), "MovieNet-PS is incomplete"),
        (("cdps", "--root"), "CDPS is incomplete"),
        (("label_studio",), "does not exist, or is not a file"),
        (("mot",), "no MOT sequence"),
        (("mot", "--test-share", "2"), "test_share 2.0 (between 0 and 1)"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path: Path, capsys) -> None:
    assert convert(*arguments, tmp_path) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
