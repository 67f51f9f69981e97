# SPDX-License-Identifier: Apache-2.0
"""tools/reproduce.py: one row of each paper from data to the folder to publish, at tiny size."""

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from programs import load_program, run_program_file
from psdiff_tiny import PAPER_KEYS

from person_search.data.synthetic import write_prw
from person_search.reproduction import Step, Table, Training, markdown, row
from person_search.synthetic_config import SyntheticConfig
from person_search.utils.weight_files import read_card

ROOT = Path(__file__).resolve().parents[2]
SHORT = shlex.split(
    """SOLVER.MAX_ITER 1 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2 SOLVER.AMP.ENABLED False
    DATALOADER.NUM_WORKERS 0 TEST.PERSON_SEARCH.SCORE_THRESH 0.0"""
)


def flat(tree: dict, prefix: str = "") -> list[str]:
    """Returns a part of a config as KEY VALUE pairs."""
    words = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        words += flat(value, f"{name}.") if isinstance(value, dict) else [name, str(value)]
    return words


def diffps_keys(cache: Path) -> list[str]:
    """Returns what the tiny config of DiffPS sets below MODEL, with the cache in a folder."""
    config = ROOT / "configs" / "DiffPS" / "tiny" / "diffps_tiny_synthetic.yaml"
    model = yaml.safe_load(config.read_text())["MODEL"]
    return [*flat(model, "MODEL."), "MODEL.DIFFPS.BACKBONE.CACHE.DIR", str(cache)]


@pytest.fixture(scope="module")
def tool():
    return load_program("tools/reproduce.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small = SyntheticConfig(
        train_images=6, test_images=6, train_ids=3, test_ids=2, width=96, height=72,
        people=(2, 3),
    )  # fmt: skip
    write_prw(folder / "PRW", small, progress=False)
    return folder


def run_here(words, env, log) -> int:
    """Runs a command of Python in this process."""
    _, script, *options = words
    before = dict(os.environ)
    os.environ.update(env)
    try:
        return run_program_file(script, *options)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["psdiff", "diffps"])
def test_from_data_to_the_folder_to_publish(
    tool, method, data, tmp_path, monkeypatch, capsys
) -> None:
    tables = tool.load_tables(method)
    number = "I" if method == "psdiff" else "1"
    (whole,) = (t for t in tables.TABLES if t.number == number)
    label, cells = whole.rows[3 if method == "psdiff" else 0]
    one = Table(number, whole.title, (whole.columns[0], "PRW"), [(label, cells[1:])])
    for name in ("ALL_TABLES", "TABLES"):
        monkeypatch.setattr(tables, name, (one,), raising=name != "ALL_TABLES")
    monkeypatch.setattr(tool, "load_tables", lambda method: tables)
    monkeypatch.setattr(tool, "run_command", run_here)
    monkeypatch.setattr(tool, "ROOT", tmp_path)  # paths of teachers are relative to it
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "projects", "tools"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    keys = PAPER_KEYS if method == "psdiff" else diffps_keys(tmp_path / "cache")
    words = [method, "--data", str(data), "--gpus", "0", "--output", str(tmp_path / "out")]
    words += ["--tables", number, "--set", *keys, *SHORT]
    assert tool.main(words) == 0
    printed = capsys.readouterr().out
    name = cells[1].ours.training.name
    found = json.loads((tmp_path / "out" / cells[1].ours.folder / "results.json").read_text())
    mean, top1 = found["search"]["mAP"], found["search"]["top1"]
    theirs = [float(value) for value in cells[1].paper.split(" / ")]
    ours = f"{mean:.1f} / {top1:.1f} | {round(mean, 1) - theirs[0]:+.1f} / "
    assert f"| {label} | {cells[1].paper} | {ours}" in printed
    published = tmp_path / "out" / "publish"
    files = {path.name for path in (published / name).iterdir()}
    assert {"weights.safetensors", "config.yaml", "metrics.json", "log.txt", "run.json"} <= files
    card = read_card(published / name / "weights.safetensors")
    assert card is not None and card.data == ("prw_train",)
    assert (published / "tables.md").read_text() in printed + "\n"
    # a second run finds everything
    monkeypatch.setattr(tool, "run_step", None)
    assert tool.main(words) == 0


def test_the_plan_has_estimates_and_runs_nothing(tool, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "run_step", None)
    words = ["psdiff", "--data", str(tmp_path), "--gpus", "4", "--output", str(tmp_path / "out")]
    assert tool.main([*words, "--tables", "V", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "15 steps" in printed and "ESTIMATES" in printed and not (tmp_path / "out").exists()
    (line,) = (line for line in printed.splitlines() if " training " in line)
    assert "psdiff_r50_fpn_cuhk_sysu" in line and "A100" in printed


def test_differences_to_the_paper(tool) -> None:
    class Run(tuple):
        training = Training("a/b")
        folder = "b/test"
        overrides = ()

    table = Table("9", "t", ("", "x", "y,"), [row("r", "50.0 / 80.0, –", Run(), Run())])
    text = markdown(table, {"b/test": {"mAP": 51.26, "top1": 79.0}}, "M", difference=True)
    assert "| r | 50.0 / 80.0 | 51.3 / 79.0 | +1.3 / -1.0 | – | 51.3 |  | `a/b` |" in text
    assert "| r | 50.0 / 80.0 |  |  | – |  |  |" in markdown(table, {}, "M", difference=True)


def options(tool, tmp_path, **values):
    import argparse

    given = {"output": tmp_path, "data": tmp_path, "gpus": 2, "slurm": None, **values}
    return argparse.Namespace(**given)


def test_slurm_submits_and_waits(tool, tmp_path, monkeypatch) -> None:
    """The command line of sbatch, taken apart and run by a script of that name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    sbatch = folder / "sbatch"
    sbatch.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/sbatch.py" "$@"\n')
    (folder / "sbatch.py").write_text(
        "import json, subprocess, sys\n"
        f"json.dump(sys.argv[1:], open({str(tmp_path / 'words.json')!r}, 'w'))\n"
        "wrapped = sys.argv[-1].removeprefix('--wrap=')\n"
        "sys.exit(subprocess.run(wrapped, shell=True).returncode)\n"
    )
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    done = tmp_path / "run" / "a file"
    done.parent.mkdir()
    code = f"open({str(done)!r}, 'w')"
    step = Step(f"python -c {shlex.quote(code)}", done, "training", "a/b")
    tool.run_step(step, "1/1", options(tool, tmp_path, slurm="--partition 'my gpus'"))
    words = json.loads((tmp_path / "words.json").read_text())
    assert words[:2] == ["--wait", "--job-name=training_run"] and "--gpus=2" in words
    assert words[-3:-1] == ["--partition", "my gpus"] and done.is_file()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="sbatch is not installed here"):
        tool.run_step(step, "1/1", options(tool, tmp_path, slurm=""))


@pytest.mark.parametrize(
    ("code", "reason"), [("raise SystemExit(3)", "exit status 3"), ("0", "did not write")]
)
def test_a_failed_step_names_its_log(tool, tmp_path, code, reason) -> None:
    step = Step(f"python -c {shlex.quote(code)}", tmp_path / "a" / "b", "training", "x/y")
    with pytest.raises(SystemExit, match=reason) as caught:
        tool.run_step(step, "1/1", options(tool, tmp_path))
    assert (tmp_path / "logs" / "training_a.log").is_file() and "training_a.log" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tables", "XI"], "--tables XI: the paper's are"),
        (["--data", "nowhere"], "is not a folder"),
        (["--set", "SEED"], "--set takes KEY VALUE pairs"),
    ],
)
def test_bad_input(tool, tmp_path, capsys, words, message) -> None:
    base = ["diffps", "--data", str(tmp_path), "--gpus", "0", "--output", str(tmp_path / "out")]
    try:
        code = tool.main([*base, *words])
    except SystemExit as e:
        code = e.code
    assert code == 2 and message in capsys.readouterr().err


def test_help_runs_without_the_libraries() -> None:
    script = ROOT / "tools" / "reproduce.py"
    found = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert found.returncode == 0 and "--plan" in found.stdout and not found.stderr
