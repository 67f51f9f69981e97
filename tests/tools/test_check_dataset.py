# SPDX-License-Identifier: Apache-2.0
"""tools/check_dataset.py: what it prints, and its exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from json_trees import small_document, write_json_set
from mat_trees import small_cuhk_sysu, small_prw
from programs import load_program


@pytest.fixture(scope="module")
def check():
    return load_program("tools/check_dataset.py").main


@pytest.fixture
def cuhk_sysu(tmp_path: Path) -> Path:
    return small_cuhk_sysu(tmp_path / "CUHK-SYSU")


@pytest.fixture
def prw(tmp_path: Path) -> Path:
    return small_prw(tmp_path / "PRW")


def test_on_a_good_set(check, cuhk_sysu: Path, capsys) -> None:
    args = ["cuhk_sysu", "--root", str(cuhk_sysu), "--no-compare"]
    assert check(args) == 0
    output = capsys.readouterr().out
    assert "train identities" in output and "Fit for training and evaluation." in output
    assert "published" not in output


def test_compares_and_fails_on_a_difference(check, prw: Path, capsys) -> None:
    assert check(["prw", "--root", str(prw)]) == 1
    output = capsys.readouterr().out
    assert "11,816" in output and "differs" in output and "483 are published" in output


def test_lists_irregularities_up_to_the_limit(check, tmp_path: Path, capsys) -> None:
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
    assert check(args) == 0
    output = capsys.readouterr().out
    assert "clipped: 3" in output and output.count("c1s1_000001.jpg.mat: row") == 3
    assert check([*args, "--limit", "1"]) == 0
    output = capsys.readouterr().out
    assert output.count("c1s1_000001.jpg.mat: row") == 1 and "and 2 more" in output


def test_missing_subsets_are_noted(check, cuhk_sysu: Path, capsys) -> None:
    assert check(["cuhk_sysu", "--root", str(cuhk_sysu), "--no-compare"]) == 0
    printed = capsys.readouterr().out
    assert "Notes: 2" in printed and "Occlusion.mat does not exist" in printed
    assert "Fit for training and evaluation." in printed


def test_on_a_missing_set(check, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert check(["synthetic_prw"]) == 1
    output = capsys.readouterr().out
    assert "PRW was not found" in output and "frame_train.mat" in output


def test_all_faults_of_a_file_at_once(check, tmp_path: Path, capsys) -> None:
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
    assert check([str(path)]) == 1
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


def test_a_file_that_is_not_json(check, tmp_path: Path, capsys) -> None:
    path = tmp_path / "own.json"
    assert check([str(path)]) == 1
    assert "does not exist" in capsys.readouterr().out
    path.write_text("{")
    assert check([str(path)]) == 1
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
def test_a_wrong_command_line(check, args: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        check(args)
    assert raised.value.code == 2


@pytest.mark.skipif(
    not sys.prefix.isascii(), reason="here, Python does not start in an ASCII locale"
)
def test_names_that_the_locale_cannot_encode(tmp_path: Path, repo_root: Path, child_env) -> None:
    """UTF-8 and other names, below a folder that is not UTF-8, with the ASCII locale."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es"))
    document = small_document()
    document["images"][0]["file_name"] = "caf\u00e9/1.jpg"
    document["images"][1]["file_name"] = "caf\udce9/2.jpg"  # as Python lists the byte E9
    document["images"][3]["file_name"] = "caf\u00e9/absent.jpg"
    path = write_json_set(folder, document)
    (folder / "caf\u00e9" / "absent.jpg").unlink()
    prw = small_prw(folder / "PRW")
    code = (
        "import sys; from programs import load_program as load\n"
        "print(load('tools/check_dataset.py').main([sys.argv[1]]))\n"
        "print(load('tools/convert_dataset.py').main(['prw', '--root', sys.argv[2]]))\n"
        "print(load('tools/check_dataset.py').main([sys.argv[3]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, prw, prw / "prw_json_test.json"],
        env=child_env
        | {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}
        | {"PYTHONPATH": os.pathsep.join([str(repo_root / "tests" / "helpers"), *sys.path])},
        capture_output=True,
        cwd=repo_root,
    )
    assert done.returncode == 0, done.stderr.decode()
    printed = done.stdout.decode("ascii")
    assert [line for line in printed.splitlines() if line in ("0", "1", "2")] == ["1", "0", "0"]
    assert "Errors: 1" in printed and "absent.jpg: the file does not exist" in printed
    assert "donn\\udce9es" in printed
