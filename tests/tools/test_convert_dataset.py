# SPDX-License-Identifier: Apache-2.0
"""tools/convert_dataset.py: its files, the config that it prints, and its exit status."""

from pathlib import Path

import pytest
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
    ("arguments", "message"),
    [
        (("cuhk_sysu", "--root"), "CUHK-SYSU is incomplete"),
        (("mot",), "no MOT sequence"),
        (("mot", "--test-share", "2"), "test_share 2.0 (between 0 and 1)"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path: Path, capsys) -> None:
    assert convert(*arguments, tmp_path) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
