# SPDX-License-Identifier: Apache-2.0
"""Tests run outside the checkout and do not see the settings of the user."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOW = "import os; print(os.getcwd(), os.environ.get('DETECTRON2_DATASETS'))"


def test_a_test_and_its_child_processes_run_in_an_empty_folder(child_env: dict[str, str]) -> None:
    assert not Path.cwd().resolve().is_relative_to(ROOT)
    assert list(Path.cwd().iterdir()) == []
    run = subprocess.run(
        [sys.executable, "-c", SHOW], env=child_env, capture_output=True, text=True
    )
    assert run.stdout.strip() == f"{os.getcwd()} None"


def test_settings_of_the_user_are_not_seen(tmp_path: Path, child_env: dict[str, str]) -> None:
    """Runs the test above in a session that is started with a data folder and a cache."""
    env = child_env | {"DETECTRON2_DATASETS": str(tmp_path), "PERSON_SEARCH_CACHE": str(tmp_path)}
    name = "test_a_test_and_its_child_processes_run_in_an_empty_folder"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{__file__}::{name}",
    ]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0 and "1 passed" in run.stdout, run.stdout + run.stderr
    assert list(tmp_path.iterdir()) == []
