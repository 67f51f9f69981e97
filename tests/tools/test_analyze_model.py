# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of models; tests/utils/test_flops.py checks the rules."""

import json

import pytest
from programs import load_program
from psdiff_tiny import tiny_cfg, tiny_model


@pytest.fixture(scope="module")
def tool():
    return load_program("tools/analyze_model.py")


def run(tool, *words):
    return tool.main([str(word) for word in words])


def config_file(cfg, folder):
    path = folder / "config.yaml"
    path.write_text(cfg.dump())
    return path


def test_tool(tool, tmp_path, capsys):
    cfg = tiny_cfg()
    path = config_file(cfg, tmp_path)
    outputs = ("--json", tmp_path / "cost.json", "--markdown", tmp_path / "cost.md")
    args = ("--config-file", path, "--size", 50, 64, "--steps", 3, 1)
    assert run(tool, *args, *outputs) == 0
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["padded_size"] == [56, 64] and cost["proposals"] == 12
    model = tiny_model()
    assert sum(cost["parameters"].values()) == sum(p.numel() for p in model.parameters())
    assert cost["trainable"] + cost["frozen"] == sum(cost["parameters"].values())
    dc = sum(p.numel() for p in model.head.cdl.dc.parameters())
    assert cost["parameters"]["CDL: dynamic convolution (DC)"] == dc
    step = sum(cost["step"].values())
    assert cost["total"]["3"] == pytest.approx(cost["backbone"] + 3 * step)
    assert cost["total"]["1"] == pytest.approx(cost["backbone"] + step)
    assert cost["step"]["RoI pooling"] == pytest.approx(12 * 16 * 9 * 4 * 8 / 1e9)
    assert "rest" not in cost["step"], "every operation of the head has its part"
    printed = capsys.readouterr().out
    assert "RoI pooling" in printed and "Not counted" in printed
    assert "| one step " in (tmp_path / "cost.md").read_text()


def test_tool_on_another_architecture(tool, tmp_path):
    from tiny_model import tiny_cfg as other_cfg

    path = config_file(other_cfg(str(tmp_path), "unused"), tmp_path)
    args = ("--config-file", path, "--size", 64, 96, "--json", tmp_path / "cost.json")
    assert run(tool, *args) == 0
    cost = json.loads((tmp_path / "cost.json").read_text())
    convolutions = 2 * 16 * 24 * 16 * (3 * 16) + 2 * 8 * 12 * 16 * (16 * 9)
    convolutions += 2 * 8 * 12 * 3 * (16 * 25)
    assert convolutions <= cost["total"]["1"] * 1e9 < 1.5 * convolutions
    assert set(cost["parameters"]) == {"features", "detect", "embed", "classify"}


def test_wrong_input(tool, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run(tool, "--config-file", "x.yaml", "--size", 8, 64)
    assert error.value.code == 2
    with pytest.raises(SystemExit) as error:
        run(tool, "--config-file", tmp_path / "none.yaml")
    assert error.value.code == 2
    assert "none.yaml" in capsys.readouterr().err


def test_cost_of_the_paper(tool, repo_root):
    """Table II: 31 M parameters, and 301 / 309 / 333 / 390 GFLOPs at 1333 x 800."""
    config = repo_root / "configs/PSDiff/psdiff_r50_fpn_cuhk_sysu.yaml"
    args = tool.parse_args(["--config-file", str(config), "--size", "64", "64"])
    cost = tool.analyze(args)
    assert 30.5e6 <= sum(cost.parameters.values()) <= 31.5e6
    # the backbone works per pixel, the head per box
    backbone = cost.backbone * (800 * 1344) / (64 * 64)
    assert backbone == pytest.approx(297.5, abs=0.1)
    step = sum(cost.step.values())
    for steps, limit in {1: 303, 2: 309, 4: 333, 8: 390}.items():
        assert backbone + steps * step <= limit
    assert not cost.suspicious
