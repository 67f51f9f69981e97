# SPDX-License-Identifier: Apache-2.0
"""The report on the installation."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from person_search.utils import backend_name, collect_env

ROOT = Path(__file__).resolve().parents[2]


def test_command_names_versions_backend_and_missing_data(tmp_path: Path) -> None:
    (tmp_path / "PRW-v16.04.20").mkdir()
    run = subprocess.run(
        [sys.executable, "-m", "person_search.utils.collect_env"],
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert backend_name() in run.stdout
    rows = dict(line.split("  ", 1) for line in run.stdout.splitlines() if "  " in line)
    rows = {key.strip(): value.strip() for key, value in rows.items()}
    assert rows["torch"][0].isdigit()
    assert rows["PRW"] == str(tmp_path / "PRW-v16.04.20")
    assert rows["CUHK-SYSU"].startswith("not found")


def test_reports_a_broken_installation_without_torch_or_detectron2(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from person_search.utils.collect_env import collect_env\nprint(collect_env())"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "PROBLEM: Detectron2 is not installed." in run.stdout
    assert "missing transformers, tokenizers: pip install person-search[diffps]" in run.stdout


def test_missing_feature_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = collect_env.Feature("flying", ("no_such_module_here", "json"), "pip install wings")
    monkeypatch.setattr(collect_env, "FEATURES", (feature,))
    assert collect_env.describe_features() == [
        ("flying", "missing no_such_module_here: pip install wings")
    ]


def test_an_installed_feature_names_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = collect_env.Feature("arrays", ("numpy",), "pip install numpy")
    monkeypatch.setattr(collect_env, "FEATURES", (feature,))
    assert collect_env.describe_features() == [("arrays", f"ready (numpy {numpy.__version__})")]


def test_module_version() -> None:
    assert collect_env.module_version("no_such_module_here") is None
    assert collect_env.module_version("torch")[0].isdigit()
    assert collect_env.module_version("json") == "?"
