# SPDX-License-Identifier: Apache-2.0
"""The command person-search: its output, and one message per user error."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from galleries import write_video
from PIL import Image

from person_search.search import FolderStore


def results_in(folder: Path) -> tuple[dict, list[dict]]:
    head, *matches = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return head, matches


def test_index_and_query(search_tool, tmp_path, images, capsys) -> None:
    """A copy of the query's image must come first, with a similarity of 1."""
    shutil.copy(images[0], tmp_path / "images" / "copy.png")
    (tmp_path / "images" / "broken.jpg").write_text("no image")
    (tmp_path / "table.csv").write_text("file,camera,time\ncopy.png,north,2026-05-01T12:00\n")
    assert search_tool("index", table=tmp_path / "table.csv") == 0
    printed = capsys.readouterr().out
    assert "5 images with" in printed and "broken.jpg" in printed
    assert search_tool("query") == 0
    # the persons detected in the copy are at the same place in the query image
    found = next(m for m in results_in(tmp_path / "out")[1] if m["image"].endswith("copy.png"))
    capsys.readouterr()
    assert search_tool("query", box=tuple(found["box"])) == 0
    head, matches = results_in(tmp_path / "out")
    best = matches[0]
    assert best["image"].endswith("copy.png") and best["similarity"] > 0.99
    assert best["box"] == pytest.approx(found["box"], abs=0.2)
    assert (best["camera"], best["time"]) == ("north", "2026-05-01 12:00:00")
    assert [m["rank"] for m in matches] == [1, 2, 3, 4], "each image once, not the query's own"
    assert head["query"][0]["image"] == str(images[0])
    printed = capsys.readouterr().out
    assert "  1  similarity" in printed and "report.html" in printed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "report.html", "results.jsonl", "sheet.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 500
    assert (tmp_path / "out" / "sheet.png").stat().st_size < 600_000

    assert search_tool("query", include_own=True, every_person=True, top=3, camera="north") == 0
    assert {m["camera"] for m in results_in(tmp_path / "out")[1]} == {"north"}
    assert search_tool("query", since="2026-06-01") == 0
    assert "No person was found" in capsys.readouterr().out
    assert search_tool("query") == 0
    matches = results_in(tmp_path / "out")[1]
    middle = (matches[0]["similarity"] + matches[-1]["similarity"]) / 2
    assert search_tool("query", min_similarity=middle) == 0
    similar = results_in(tmp_path / "out")[1]
    assert similar == [m for m in matches if m["similarity"] >= middle] and len(similar) < 4
    assert search_tool("query", camera="north", min_similarity=1.0) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"No person was found .*; the most similar person has similarity 0\.\d{3}\.", printed
    )
    two = {"query": [images[0], images[1]], "box": [(10, 10, 60, 90), (5, 5, 50, 90)]}
    assert search_tool("query", **two) == 0
    head, matches = results_in(tmp_path / "out")
    assert len(head["query"]) == 2 and len(matches) == 3
    assert search_tool("query", box=None) == 0 and search_tool("query", box=None, best=True) == 0

    capsys.readouterr()
    for command in ("query", "index"):
        assert search_tool(command, "MODEL.PSDIFF.STEPS", 2) == 2
        errors = capsys.readouterr().err
        assert "made by another model" in errors and "here 2" in errors
    assert search_tool("info") == 0
    printed = capsys.readouterr().out
    assert "5 (1 file unreadable)" in printed and "north" in printed
    assert search_tool("verify") == 0 and search_tool("compact") == 0
    assert search_tool("verify") == 0
    (tmp_path / "images" / "copy.png").unlink()
    assert search_tool("verify") == 2
    assert "'copy.png' is missing" in capsys.readouterr().out


def test_videos(search_tool, tmp_path, capsys) -> None:
    """One entry a tracklet, or every frame; both account for every person of the gallery."""
    films = tmp_path / "films"
    films.mkdir()
    write_video(films / "v.mp4")
    assert search_tool("index", source=films, every=0.5) == 0
    assert (tmp_path / "g" / "tracklets.npz").exists(), "grouped once, not for every query"
    options = {"top": 1000, "every_person": True}
    assert search_tool("query", every_frame=True, **options) == 0
    head, frames = results_in(tmp_path / "out")
    assert head["every_frame"] and not any("tracklet" in match for match in frames)
    assert {match["offset"] for match in frames} == {0.0, 0.5, 1.0, 1.5, 2.0, 2.5}
    assert len(frames) == head["gallery"]["persons"]
    assert search_tool("query", **options) == 0
    head, matches = results_in(tmp_path / "out")
    assert not head["every_frame"] and len(matches) < len(frames)
    assert sum(match["tracklet"]["frames"] for match in matches) == len(frames)
    capsys.readouterr()
    assert search_tool("info") == 0
    assert f"tracklets            {len(matches)} in videos" in capsys.readouterr().out


def test_no_person_found(search_tool, tmp_path, capsys) -> None:
    """An empty gallery, and a query in it."""
    high = ("TEST.PERSON_SEARCH.SCORE_THRESH", 1.0)
    assert search_tool("index", *high) == 0
    assert search_tool("query") == 0
    assert results_in(tmp_path / "out")[1] == []
    assert "the gallery is empty" in capsys.readouterr().out
    assert search_tool("index") == 2
    assert "SCORE_THRESH (1.0, here 0.0)" in capsys.readouterr().err
    assert search_tool("query", *high, box=None) == 2
    assert "no person was detected" in capsys.readouterr().err
    assert search_tool("compact", index=True) == 2
    assert "the gallery is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "changes", "text"),
    [
        ("query", {"box": (200, 10, 240, 90)}, "p0.png', which has 128 x 96 pixels"),
        ("query", {"box": (10, 10, 10, 90)}, "has no area"),
        ("query", {"box": ("nan", 10, 60, 90)}, "has no area"),
        ("query", {"query": "absent.jpg"}, "the image 'absent.jpg' does not exist"),
        ("query", {"query": "{folder}/text.jpg"}, "cannot read the image"),
        ("query", {"gallery": "{folder}/images"}, "is not a gallery: it contains no gallery.json"),
        ("query", {"gallery": "{folder}/absent"}, "is not a gallery"),
        ("query", {"camera": "south"}, "--camera is 'south'; cameras of the gallery: none"),
        ("query", {"since": "yesterday"}, "'yesterday' is not an ISO 8601 time"),
        ("query", {"weights": "{folder}/absent.pth"}, "absent.pth' does not exist"),
        ("query", {"method": "approximate"}, "has no approximate index"),
        ("query", {"output": "{folder}/text.jpg"}, "text.jpg"),
        ("index", {"source": "{folder}/empty"}, "contains no image"),
        ("index", {"source": "{folder}/absent"}, "absent' does not exist"),
        ("index", {"weights": "{folder}/text.jpg"}, "is not a checkpoint"),
        ("index", {"weights": "{folder}/other.pth"}, "is for another architecture"),
        ("index", {"config_file": "absent.yaml"}, "'absent.yaml' does not exist"),
        ("index", {"gallery": "{folder}/images"}, "not empty"),
        ("index", {"table": "{folder}/table.csv"}, "--source does not contain: 'other.png'"),
        ("index", {"num_processes": 0}, "--num-processes at least 1"),
    ],
)
def test_wrong_input(command, changes, text, search_tool, tmp_path, capsys) -> None:
    (tmp_path / "text.jpg").write_text("no image, and no weights either\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("file,camera\nother.png,north\n")
    torch.save({"model": {"other.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    if command == "query":
        FolderStore.create(tmp_path / "g", 16, identity_of_gallery(search_tool, tmp_path))
    filled = {
        name: value.format(folder=tmp_path) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    assert search_tool(command, **filled) == 2
    errors = capsys.readouterr().err
    assert text in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "results.jsonl").exists()


IDENTITIES: list = []


def identity_of_gallery(search_tool, folder: Path):
    """Of the tiny run; it is the same in all tests."""
    if not IDENTITIES:
        assert search_tool("index", gallery=folder / "once") == 0
        IDENTITIES.append(FolderStore(folder / "once").manifest.model)
    return IDENTITIES[0]


@pytest.mark.parametrize(
    ("command", "opts", "changes", "text"),
    [
        ("index", ("MODEL.PSDIFF.STEP", 2), {}, "Did you mean MODEL.PSDIFF.STEPS"),
        ("index", (), {"every": 0}, "--every is 0; it must be above 0"),
        ("index", (), {"fps": -1}, "--fps is -1; it must be above 0"),
        ("query", (), {"top": 0}, "--top is 0; it must be at least 1"),
        ("query", (), {"show": -1}, "--show is -1; it must be at least 0"),
        ("query", (), {"box": (1, 2, 3)}, "expected 4 arguments"),
        ("query", (), {"query": ["a.png", "b.png"]}, "--box is given 1 times for 2 images"),
        ("query", (), {"point": (1, 2)}, "not allowed with argument"),
        ("find", (), {}, "invalid choice: 'find'"),
    ],
)
def test_wrong_arguments(command, opts, changes, text, search_tool, capsys) -> None:
    assert search_tool(command, *opts, **changes) == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_and_finished_by_two_processes(
    tiny_run, tmp_path, images, child_env, search_tool
) -> None:
    """As a user runs it, with Ctrl-C; kills are in test_indexing.py."""
    command = [
        sys.executable, "-m", "person_search.search", "index", "--gallery", tmp_path / "g",
        "--source", tmp_path / "images", "--config-file", tiny_run / "config.yaml",
        "--weights", tiny_run / "weights.pth",
    ]  # fmt: skip
    for i in range(300):  # so many that it cannot be done before it is told to stop
        shutil.copy(images[i % 4], tmp_path / "images" / f"copy{i:03d}.png")
    run = subprocess.Popen(
        command,
        env=child_env,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs deaf to Ctrl-C, and the tests may be part of one
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while not written(tmp_path / "g") and run.poll() is None:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGINT)
    errors = run.communicate()[1]
    assert run.returncode == 130 and "Traceback" not in errors, errors
    assert "Run the same command again to continue" in errors and 0 < written(tmp_path / "g") < 304
    for i in range(280):
        (tmp_path / "images" / f"copy{i:03d}.png").unlink()
    assert search_tool("index", prune=True, num_processes=2) == 0
    assert FolderStore(tmp_path / "g").manifest.segments == ("0001", "0002")
    assert search_tool("verify") == 0
    assert search_tool("query", include_own=True) == 0
    assert len(results_in(tmp_path / "out")[1]) == 24


def written(gallery: Path) -> int:
    """Lines in the logs."""
    return sum(log.read_bytes().count(b"\n") for log in gallery.glob("segments/*/entries.log"))


@pytest.mark.parametrize("command", [(), ("index",), ("query",), ("serve",)])
def test_help_imports_nothing_heavy(command: tuple[str, ...], child_env) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = {['person-search', *command, '--help']}\n"
        "try: runpy.run_module('person_search.search', run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'detectron2', 'matplotlib'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=child_env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "--" in run.stdout


def test_the_names_of_the_package_are_there() -> None:
    import person_search.search as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018
