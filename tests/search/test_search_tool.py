# SPDX-License-Identifier: Apache-2.0
"""tools/search.py: what it writes, and one message for whatever the user got wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def results_in(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_search_from_the_command_line(tiny_run, tmp_path, pictures, child_env) -> None:
    """As a user runs it; a copy of the query's picture must come first, with a similarity of 1."""
    shutil.copy(pictures[0], tmp_path / "gallery" / "copy.png")
    (tmp_path / "gallery" / "broken.jpg").write_text("no picture")
    command = [
        sys.executable, ROOT / "tools" / "search.py",
        "--config-file", tiny_run / "config.yaml", "--weights", tiny_run / "weights.pth",
        "--query", pictures[0], "--gallery", tmp_path / "gallery", "--output", tmp_path / "out",
    ]  # fmt: skip
    first = results_of_run(command, (10, 10, 60, 90), tmp_path, child_env)
    # whom the model finds in the copy is in the query's picture at the same place
    found = next(m for m in first["matches"] if m["image"].endswith("copy.png"))
    result = results_of_run(command, found["box"], tmp_path, child_env)
    best = result["matches"][0]
    assert best["image"].endswith("copy.png") and best["similarity"] > 0.99
    assert best["box"] == pytest.approx(found["box"], abs=0.2)
    assert [m["rank"] for m in result["matches"]] == [1, 2, 3, 4]
    similarities = [m["similarity"] for m in result["matches"]]
    assert similarities == sorted(similarities, reverse=True)
    assert result["gallery"]["pictures"] == 4, "without the query's own and the broken one"
    assert [Path(p).name for p in result["gallery"]["left_out"]] == ["broken.jpg"]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 500
    assert (tmp_path / "out" / "sheet.png").stat().st_size < 600_000


def results_of_run(command: list, box, folder: Path, env: dict) -> dict:
    words = [str(word) for word in (*command, "--box", *box)]
    run = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "broken.jpg" in run.stdout + run.stderr, "the broken picture is named"
    assert "Traceback" not in run.stderr and "FutureWarning" not in run.stderr
    assert "  1  similarity" in run.stdout and "sheet.png" in run.stdout
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["results.json", "sheet.png"]
    return results_in(folder / "out")


def test_top_is_for_the_sheet_only(search_tool, tmp_path, capsys) -> None:
    assert search_tool(top=1) == 0
    assert len(results_in(tmp_path / "out")["matches"]) == 3
    assert "  2  similarity" not in capsys.readouterr().out


def test_box_is_clipped_to_the_picture(search_tool, tmp_path) -> None:
    assert search_tool(box=(-10, -10, 60, 900)) == 0
    assert results_in(tmp_path / "out")["query"]["box"] == [0, 0, 60, 96]


def test_nobody_found(search_tool, tmp_path, capsys) -> None:
    assert search_tool("TEST.PERSON_SEARCH.SCORE_THRESH", 1.0) == 0
    assert results_in(tmp_path / "out")["matches"] == []
    assert (tmp_path / "out" / "sheet.png").is_file()
    assert "Nobody was found in 3 pictures" in capsys.readouterr().out


def test_gallery_of_the_query_alone(search_tool, tmp_path, pictures) -> None:
    for path in pictures[1:]:
        path.unlink()
    assert search_tool() == 0
    assert results_in(tmp_path / "out")["gallery"]["pictures"] == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"box": (200, 10, 240, 90)}, "outside the picture, which is 128 x 96 pixels"),
        ({"box": (10, 10, 10, 90)}, "has no area"),
        ({"box": (60, 10, 10, 90)}, "has no area"),
        ({"box": ("nan", 10, 60, 90)}, "has no area"),
        ({"query": "absent.jpg"}, "there is no picture 'absent.jpg'"),
        ({"query": "{folder}/text.jpg"}, "cannot read the picture"),
        ({"gallery": "{folder}/empty"}, "holds no picture"),
        ({"gallery": "{folder}/absent"}, "is no folder"),
        ({"gallery": "{folder}/unreadable"}, "none of the 1 pictures of the gallery can be read"),
        ({"weights": "{folder}/absent.pth"}, "there is no weight file"),
        ({"weights": "{folder}/text.jpg"}, "is damaged, or is none"),
        ({"weights": "{folder}/other.pth"}, "is of another architecture"),
        ({"config_file": "absent.yaml"}, "'absent.yaml' does not exist"),
        ({"output": "{folder}/text.jpg"}, "text.jpg"),
    ],
)
def test_wrong_input(changes, text, search_tool, tmp_path, capsys) -> None:
    (tmp_path / "text.jpg").write_text("no picture, and no weights either\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "a.jpg").write_text("no picture")
    torch.save({"model": {"other.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    filled = {
        name: value.format(folder=tmp_path) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    assert search_tool(**filled) == 2
    errors = capsys.readouterr().err
    assert text in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("opts", "changes", "text"),
    [
        (("MODEL.PSDIFF.STEP", 2), {}, "Did you mean MODEL.PSDIFF.STEPS"),
        ((), {"top": 0}, "--top is 0; it must be at least 1"),
        ((), {"box": (1, 2, 3)}, "expected 4 arguments"),
    ],
)
def test_wrong_arguments(opts, changes, text, search_tool, capsys) -> None:
    assert search_tool(*opts, **changes) == 2
    assert text in capsys.readouterr().err


def test_earlier_results_survive_a_failed_run(search_tool, tmp_path) -> None:
    assert search_tool() == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert search_tool(weights="absent.pth") == 2
    assert (tmp_path / "out" / "results.json").read_bytes() == before


@pytest.mark.parametrize("tool", ["search", "visualize_search", "visualize_data"])
def test_help_imports_nothing_heavy(tool: str, child_env) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['tool', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'tools' / f'{tool}.py')!r}, run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'detectron2', 'matplotlib'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=child_env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "--output" in run.stdout
