# SPDX-License-Identifier: Apache-2.0
"""The test command comes to an end, whatever a test does to its process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OTHER_FILES = 4  # more than workers: the dead worker has files left that no other worker got


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "Segmentation fault"),
        ("time.sleep(600)", "Timeout (0:00:03)!"),
    ],
    ids=["crash", "hang"],
)
def test_a_lost_worker_ends_the_run(
    tmp_path: Path, child_env: dict[str, str], deed: str, told: str
) -> None:
    bad = f"import os, signal, time\n\ndef test_before(): pass\n\ndef test_bad(): {deed}\n\n"
    after = "".join(f"def test_after_{i}(): pass\n" for i in range(9))
    (tmp_path / "test_bad.py").write_text(bad + after)
    for i in range(OTHER_FILES):
        (tmp_path / f"test_good_{i}.py").write_text(after)
    run = subprocess.run(
        [
            "dev/run_tests.sh", str(tmp_path), "-c", "pyproject.toml", "-o", "pythonpath=",
            "-o", "faulthandler_timeout=3", "-p", "no:cacheprovider",
        ],
        cwd=ROOT, env=child_env | {"VENV": sys.prefix, "JOBS": "2"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "crashed while running" in run.stdout and "test_bad.py::test_bad" in run.stdout
    assert told in run.stderr
