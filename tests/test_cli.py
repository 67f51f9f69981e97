# SPDX-License-Identifier: Apache-2.0
"""--help of every program, and a Python without Detectron2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from person_search import programs
from person_search.cli import NO_DETECTRON2, program_parser, run_program

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "detectron2", "cv2", "scipy", "matplotlib", "diffusers"}
HELP = """
import io, json, runpy, sys
from contextlib import redirect_stdout
from pathlib import Path
heavy, found = set(json.loads(sys.argv[1])), {}
for program in json.loads(sys.argv[2]):
    sys.argv = [program, "--help"]
    sys.path[0] = str(Path(program).parent)
    with redirect_stdout(io.StringIO()) as output:
        try:
            if program.endswith(".py"):
                runpy.run_path(program, run_name="__main__")
            else:
                sys.modules.pop(program, None)  # train_net.py has imported person_search.train
                runpy.run_module(program, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, (program, end.code)
    imported = sorted(heavy & set(sys.modules))
    found[program] = [imported, "usage" in output.getvalue()]
    for name in imported:  # so that the next program is judged by its own imports
        heavy.discard(name)
print(json.dumps(found))
"""


def programs_of_the_repository() -> list[str]:
    """Scripts and modules with a command line."""
    paths = [path for folder in ("tools", "benchmarks", "projects/*/tools") for path in
             ROOT.glob(f"{folder}/*.py")]  # fmt: skip
    scripts = [str(path) for path in paths if '__name__ == "__main__"' in path.read_text("utf-8")]
    modules = ["search", "train", "programs", "utils.collect_env"]
    return sorted(scripts) + [str(ROOT / "train_net.py"), *(f"person_search.{x}" for x in modules)]


def test_help_of_every_program_imports_little_and_is_silent(child_env) -> None:
    """Imports of torch take seconds, and print warnings."""
    names = programs_of_the_repository()
    assert len(names) > 30
    run = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(sorted(HEAVY)), json.dumps(names)],
        env=child_env, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    found = json.loads(run.stdout)
    assert {name: imported for name, (imported, _) in found.items() if imported} == {}
    assert [name for name, (_, has_usage) in found.items() if not has_usage] == []


def test_without_detectron2_there_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_program(print, program_parser("").parse_args([])) == 2
    assert capsys.readouterr().err == f"{NO_DETECTRON2}\n" and "\n" not in NO_DETECTRON2


# ---- person-search-tools -------------------------------------------------------------------------
def test_tools_are_listed_and_run(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["person-search-tools"])
    assert programs.main() == 0
    listed = capsys.readouterr().out
    assert "  check_dataset         Checks a data set:" in listed
    with pytest.raises(SystemExit) as end:
        programs.main(["check_dataset", "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: person-search-tools check_dataset [-h]")


def test_an_unknown_tool_names_the_nearest(capsys) -> None:
    assert programs.main(["check_datasets"]) == 2
    assert "no tool 'check_datasets'. Did you mean check_dataset? Available" in (
        capsys.readouterr().err
    )
