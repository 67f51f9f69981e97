# SPDX-License-Identifier: Apache-2.0
"""Detection of the installed Detectron2, in new interpreters on toy packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# -S leaves site-packages out, so that only the folders of the test are visible
PROBE = """
import sys
sys.path[:0] = {folders!r}
sys.path.append({root!r})
from person_search.utils.backend import BackendError, check_backend
try:
    print("OK", check_backend())
except BackendError as e:
    print("ERROR", e)
"""


def put_package(folder: Path, version_lines: str) -> None:
    package = folder / "detectron2"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(version_lines)


def put_metadata(folder: Path, name: str, suffix: str = "dist-info") -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.{suffix}"
    info.mkdir(parents=True)
    file = "METADATA" if suffix == "dist-info" else "PKG-INFO"
    (info / file).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("detectron2\n")


def probe(*folders: Path, pythonpath: Path | None = None) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if pythonpath is not None:
        env["PYTHONPATH"] = str(pythonpath)
    code = PROBE.format(folders=[str(f) for f in folders], root=str(ROOT))
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, cwd="/", capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


LITE = '__version__ = "0.6"\n__lite__ = "0.1.0"\n'
REAL = '__version__ = "0.6"\n'


@pytest.mark.parametrize(
    ("distribution", "lines", "expected"),
    [("detectron2-lite", LITE, "OK lite 0.1.0"), ("detectron2", REAL, "OK real 0.6")],
)
def test_one_installed(tmp_path: Path, distribution: str, lines: str, expected: str) -> None:
    put_package(tmp_path, lines)
    put_metadata(tmp_path, distribution)
    assert probe(tmp_path) == expected


def test_none_installed_gives_both_commands(tmp_path: Path) -> None:
    message = probe(tmp_path)
    assert message.startswith("ERROR Detectron2 is not installed.")
    assert "./compat/detectron2-lite" in message
    assert "git+https://github.com/facebookresearch/detectron2.git" in message


def test_both_installed_is_refused(tmp_path: Path) -> None:
    put_package(tmp_path, LITE)
    put_metadata(tmp_path, "detectron2-lite")
    put_metadata(tmp_path, "detectron2")
    message = probe(tmp_path)
    assert message.startswith("ERROR detectron2 and detectron2-lite are both installed")
    assert "pip uninstall detectron2 detectron2-lite" in message


@pytest.mark.parametrize("with_egg_info", [False, True])
def test_checkout_on_pythonpath_wins_over_lite(tmp_path: Path, with_egg_info: bool) -> None:
    site, checkout = tmp_path / "site", tmp_path / "checkout"
    put_package(site, LITE)
    put_metadata(site, "detectron2-lite")
    put_package(checkout, REAL)
    if with_egg_info:
        put_metadata(checkout, "detectron2", "egg-info")
    # the interpreter itself puts PYTHONPATH in front; -S keeps that
    assert probe(checkout, site, pythonpath=checkout) == "OK real 0.6"


def test_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "detectron2" / "modeling").mkdir(parents=True)
    message = probe(tmp_path)
    assert message.startswith("ERROR Detectron2 is not installed.")
    assert str(tmp_path / "detectron2") in message


def test_broken_installation_shows_the_cause(tmp_path: Path) -> None:
    put_package(tmp_path, "import a_module_that_is_not_there\n")
    message = probe(tmp_path)
    assert "a_module_that_is_not_there" in message and "cannot be imported" in message


def test_logs_once(caplog: pytest.LogCaptureFixture) -> None:
    from person_search.utils import backend

    backend._log_once.cache_clear()
    with caplog.at_level("INFO", logger=backend.__name__):
        first, second = backend.check_backend(), backend.check_backend()
    assert first == second == backend.backend_name()
    assert [r.message for r in caplog.records if first in r.message] == [caplog.records[0].message]


def test_a_start_does_not_read_the_file_lists_of_all_packages(monkeypatch) -> None:
    """Which takes every program 0.2 s and more."""
    from person_search.utils import backend

    monkeypatch.setattr(backend.metadata, "packages_distributions", None)
    assert backend.check_backend() == backend.backend_name()
