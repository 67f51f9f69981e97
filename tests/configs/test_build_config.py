# SPDX-License-Identifier: Apache-2.0
"""From installed projects and a YAML file to a config."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from person_search.config import (
    ProjectError,
    add_all_project_configs,
    add_person_search_config,
    build_config,
    default_config,
    project_names,
)

ROOT = Path(__file__).resolve().parents[2]
SLIM = ROOT / "configs" / "PSDiff" / "tiny" / "psdiff_slim_synthetic.yaml"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    """Puts the metadata of a distribution with one entry point on the path; returns its group."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[group.of.{name}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(folder)
    return f"group.of.{name}"


def test_installed_projects_are_found() -> None:
    assert "psdiff" in project_names()
    assert "PSDIFF" in default_config().MODEL


def test_file_then_overrides() -> None:
    cfg = build_config(SLIM, ["MODEL.PSDIFF.STEPS", "3"])
    assert cfg.is_frozen()
    assert cfg.MODEL.PSDIFF.STEPS == 3
    assert cfg.MODEL.PSDIFF.NUM_PROPOSALS == 64


def test_misspelt_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"command line.*Did you mean MODEL\.PSDIFF\.STEPS"):
        build_config(SLIM, ["MODEL.PSDIFF.STEP", "3"])


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (["MODEL.PSDIFF.STEPS", "3", "--output"], "--output stands .*Options come first"),
        (
            ["MODEL.META_ARCHITECTURE", "PSDif"],
            r"is 'PSDif'.*Did you mean PSDiff\? There are .*DiffPS",
        ),
    ],
)
def test_what_every_command_says(opts, text) -> None:
    with pytest.raises(ValueError, match=text):
        build_config(SLIM, opts)


def test_absent_file() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        build_config("nowhere.yaml")


def test_a_project_outside_of_this_repository(tmp_path, monkeypatch) -> None:
    (tmp_path / "outsider_ps.py").write_text(
        "def add_config(cfg):\n    cfg.MODEL.OUTSIDER = 'was here'\n"
    )
    group = install(tmp_path, monkeypatch, "outsider", "outsider_ps:add_config")
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_all_project_configs(cfg, group)
    assert cfg.MODEL.OUTSIDER == "was here"


def test_no_project() -> None:
    with pytest.raises(ProjectError, match=r"pip install -e \."):
        add_all_project_configs(get_cfg(), group="person_search.no_such_group")


@pytest.mark.parametrize("value", ["no_such_module:add_config", "json:no_such_function"])
def test_broken_project_is_named(value: str, tmp_path, monkeypatch) -> None:
    group = install(tmp_path, monkeypatch, "broken", value)
    with pytest.raises(ProjectError, match=f"'broken' .{value}. cannot be loaded"):
        add_all_project_configs(get_cfg(), group)
