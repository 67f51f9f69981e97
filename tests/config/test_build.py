# SPDX-License-Identifier: Apache-2.0
"""Configs from installed projects, a YAML file and overrides."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from programs import load_program

from person_search.config import (
    ProjectError,
    add_all_project_configs,
    add_person_search_config,
    build_config,
    default_config,
    merge_run_config,
    project_names,
)

ROOT = Path(__file__).resolve().parents[2]
parse_args = load_program("train_net.py").parse_args
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


def test_names_and_weights_of_the_checkout_from_any_folder(tmp_path, monkeypatch) -> None:
    for name in (
        "PSDiff/tiny/psdiff_slim_synthetic.yaml",
        f"configs/{SLIM.relative_to(SLIM.parents[2])}",
    ):
        assert Path(build_config(name).MODEL.WEIGHTS).is_file()
    # of the wheel person-search-demo-weights
    package = tmp_path / "person_search_demo_weights"
    package.mkdir()
    (package / "w.safetensors").touch()
    monkeypatch.syspath_prepend(tmp_path)
    weights = ["MODEL.WEIGHTS", "projects/PSDiff/weights/w.safetensors"]
    assert build_config(SLIM, weights).MODEL.WEIGHTS == str(package / "w.safetensors")
    weights[1] = "projects/PSDiff/weights/absent.safetensors"
    assert build_config(SLIM, weights).MODEL.WEIGHTS == weights[1]


def test_a_config_of_a_newer_version(tmp_path) -> None:
    base, leaf = tmp_path / "base.yaml", tmp_path / "leaf.yaml"
    base.write_text("VERSION: 3\n")
    leaf.write_text("_BASE_: base.yaml\nVERSION: 2\n")
    text = f"{base} has VERSION 3, but this installation reads up to 2; install a newer"
    with pytest.raises(ValueError, match=re.escape(text)):
        build_config(leaf)


def test_missing_file_names_the_nearest(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="'nowhere.yaml' does not exist.$"):
        build_config("nowhere.yaml")
    nearest = "Did you mean PSDiff/tiny/psdiff_slim_synthetic.yaml"
    with pytest.raises(FileNotFoundError, match=nearest):
        build_config("configs/PSDiff/psdiff_slim_synthetic.yaml")
    with pytest.raises(FileNotFoundError, match=r"is a folder"):
        build_config(tmp_path)


def test_a_name_of_the_model_zoo_is_a_config_file() -> None:
    name = "PSDiff/tiny/psdiff_slim_synthetic.yaml"
    assert build_config(name) == build_config(SLIM)
    args = argparse.Namespace(config_file=name, opts=[], eval_only=False, num_gpus=0)
    merge_run_config(default_config(), args)
    assert args.config_file == str(SLIM), "Detectron2's default_setup reads the file once more"


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


# ---- the config of a run ----------------------------------------------------------------------
CONTENT = "VERSION: 2\nDATASETS: {TRAIN: [prw_train]}\nSOLVER: {OPTIMIZER: AdamW, MAX_ITER: 7}\n"


def merged(*arguments: str) -> CfgNode:
    cfg = get_cfg()
    add_person_search_config(cfg)
    merge_run_config(cfg, parse_args(["--num-gpus", "0", *arguments]))
    return cfg


@pytest.fixture
def file(tmp_path) -> str:
    """A config file."""
    (tmp_path / "a.yaml").write_text(CONTENT)
    return str(tmp_path / "a.yaml")


def test_config_file_and_overrides(file) -> None:
    cfg = merged("--config-file", file, "SOLVER.MAX_ITER", "9")
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.MAX_ITER, cfg.MODEL.DEVICE) == ("AdamW", 9, "cpu")


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (
            ["MODEL.REID.NUM_PID", "3"],
            r"the command line: .*MODEL.REID.NUM_PID. Did you mean MODEL.REID.NUM_PIDS\?",
        ),
        (["SOLVER.MAX_ITER", "many"], "the command line: .*SOLVER.MAX_ITER|Type mismatch"),
        (["SOLVER.MAX_ITER"], "the command line: .*odd length.*KEY VALUE pairs"),
        (["SOLVER.MAX_ITER", "9", "--resume"], "line: --resume .* Options come first"),
        (["SOLVER.MAX_ITER", "9", "--output", "x"], "line: --output .* Options come first"),
        (["DATASETS.TRAIN", "mine"], r"Write DATASETS.TRAIN \"\('mine',\)\"\."),
        (["SOLVER.STEPS", "7"], r"Write SOLVER.STEPS \"\(7,\)\"\."),
        (
            ["TEST.PERSON_SEARCH.PROTOCOLS", "[g50,all]"],
            r"Write TEST.PERSON_SEARCH.PROTOCOLS \"\['g50', 'all'\]\"\.",
        ),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCN"], r"Did you mean GeneralizedRCNN\?"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty.*'prw_train'"),
        (["--eval-only"], "DATASETS.TEST is empty"),
    ],
)
def test_wrong_overrides(opts, text, file) -> None:
    with pytest.raises(ValueError, match=text):
        merged("--config-file", file, *opts)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("VERSION: 2\nSOLVER:\n  OPTIMISER: SGD\n", "OPTIMISER. Did you mean SOLVER.OPTIMIZER?"),
        ("VERSION: 2\nSOLVER: [1\n", "a.yaml: while parsing"),
        ("VERSION: [2]\n", "a.yaml has a VERSION that is not a whole number"),
        ("VERSION: 2\nSOLVER:\n\tMAX_ITER: 1\n", "a.yaml: while scanning"),
        ("", "a.yaml is not a YAML mapping"),
        ("- 1\n", "a.yaml is not a YAML mapping"),
        (
            "VERSION: 2\nSOLVER: {MAX_ITER: 1}\nSEED: 1\nSOLVER: {BASE_LR: 1.0}\n",
            "has the key SOLVER twice in one section, in line 2 and 4",
        ),
        ("TEST:\n  EVAL_PERIOD: 1\n  EVAL_PERIOD: 2\n", "the key EVAL_PERIOD twice"),
        ("_BASE_: absent.yaml\n", "absent.yaml, which does not exist"),
        ("_BASE_: a.yaml\n", "a.yaml is its own _BASE_"),
        ("# caf\udce9\nVERSION: 2\n", "is not UTF-8 text"),
    ],
)
def test_wrong_config_file(tmp_path, content, text) -> None:
    (tmp_path / "a.yaml").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as error:
        merged("--config-file", str(tmp_path / "a.yaml"))
    assert text in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_gpu(file) -> None:
    cfg = get_cfg()
    add_person_search_config(cfg)
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda'.*--num-gpus 0"):
        merge_run_config(cfg, parse_args(["--config-file", file]))


def test_byte_order_mark_and_windows_line_ends(tmp_path) -> None:
    content = "\ufeff" + CONTENT.replace("\n", "\r\n")
    (tmp_path / "a.yaml").write_bytes(content.encode())
    assert merged("--config-file", str(tmp_path / "a.yaml")).SOLVER.MAX_ITER == 7
