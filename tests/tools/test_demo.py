# SPDX-License-Identifier: Apache-2.0
"""tools/demo.py: its commands, skipped and failing steps, and the report. CI runs all of it."""

import json
import shlex
from pathlib import Path

import pytest
from programs import load_program

RESULTS = {"search": {"mAP": 70.5, "top1": 80.0}, "detection": {"AP": 90.25}}


@pytest.fixture(scope="module")
def demo():
    return load_program("tools/demo.py")


@pytest.mark.parametrize("quick", [False, True])
def test_commands_keep_paths_with_spaces(demo, quick: bool, tmp_path) -> None:
    commands = {}

    class Recorded(demo.Steps):
        def run(self, name, title, command, done=None):
            commands[name] = shlex.split(command)

    out, data = tmp_path / "my demo", tmp_path / "my data"
    demo.run_steps(Recorded(out), out, data, quick)
    assert list(commands) == ["data", "embeddings", "untrained", "start", "training", "search"]
    assert f"{data}/synthetic" in commands["data"]
    assert f"{out}/train" in commands["training"]
    assert f"{out}/embeddings.safetensors" in commands["training"]
    assert all((demo.ROOT / words[0]).is_file() or words[0] == "-m" for words in commands.values())
    for name, words in commands.items():
        assert ("SOLVER.MAX_ITER" in words) == (quick and name != "data")


def test_folders_of_a_quick_run_are_its_own(demo) -> None:
    usual, quick = demo.parse_args([]), demo.parse_args(["--quick"])
    assert usual.output == demo.ROOT / "output/demo" and usual.datasets == demo.ROOT / "datasets"
    assert quick.output != usual.output and quick.datasets == quick.output / "datasets"
    assert demo.from_root(usual.output) == Path("output/demo")


def test_a_finished_step_is_skipped_and_a_failing_one_ends_the_demo(demo, tmp_path, capsys) -> None:
    steps = demo.Steps(tmp_path)
    (tmp_path / "done").touch()
    steps.run("first", "First", "-c 'raise SystemExit(5)'", done=tmp_path / "done")
    assert steps.seconds == {"first": 0.0} and "Skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="'Second' failed .exit status 5"):
        steps.run("second", "Second", "-c 'raise SystemExit(5)'", done=tmp_path / "missing")


def test_report(demo, tmp_path, capsys) -> None:
    out = tmp_path / "my demo"
    for name in ("untrained", "start", "train"):
        (out / name / "inference").mkdir(parents=True)
        content = json.dumps({"results": RESULTS, "backend": "lite"})
        (out / name / "inference" / f"{demo.DATASET}_results.json").write_text(content)
    (out / "chance.json").write_text(json.dumps({"mAP": 2.0, "top1": 1.0}))
    (out / "search_1.jpg").touch()
    demo.report(out, tmp_path, {"training": 60.0}, 90.0)
    shown = capsys.readouterr().out
    for text in ("PSDiff, trained", "70.5", "90.2", "1.5 min", str(out / "metrics.json")):
        assert text in shown
    assert f"Search:    {out / 'search_1.jpg'}" in shown
    assert f"--gallery '{out / 'gallery'}'" in shown
    # a second run, which trains nothing, keeps the durations of the first
    demo.report(out, tmp_path, {"training": 0.0}, 2.0)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["seconds"] == {"training": 60.0, "total": 90.0}
    assert metrics["search"] == RESULTS["search"] and metrics["chance"]["mAP"] == 2.0
