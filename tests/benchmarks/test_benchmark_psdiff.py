# SPDX-License-Identifier: Apache-2.0
"""The benchmark at tiny size; the times themselves are not asserted."""

import json
import re

import pytest
import torch
from programs import load_program
from psdiff_tiny import tiny_cfg, tiny_model


@pytest.fixture(scope="module")
def tool():
    return load_program("benchmarks/benchmark_psdiff.py")


def run(tool, *words):
    return tool.main([str(word) for word in words])


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(tiny_cfg().dump())
    return path


def test_tool(tool, config, tmp_path, capsys):
    args = ("--config-file", config, "--size", 50, 64, "--steps", 4, 1, "--repeats", 2)
    more = ("--batch", 2, "--device", "cpu", "--json", tmp_path / "speed.json")
    assert run(tool, *args, *more) == 0
    result = json.loads((tmp_path / "speed.json").read_text())
    assert list(result["image_ms"]) == list(result["speed"]) == ["1", "4"]
    assert result["speed"]["1"] == 1.0 and 0 < result["speed"]["4"]
    assert all(result[f"{part}_ms"] > 0 for part in ("backbone", "pool", "denoise", "select"))
    assert result["memory_gib"]["AMP"]["total"] < result["memory_gib"]["fp32"]["total"]
    for parts in result["memory_gib"].values():
        total = parts.pop("total")
        assert total == pytest.approx(sum(parts.values())) and total > 0
    printed = capsys.readouterr().out
    assert " 0.68 " in printed, "the value of the paper for 4 steps"
    assert "fits in 24 GB" in printed


def test_tool_in_half_precision_with_profile(tool, config, capsys):
    args = ("--config-file", config, "--size", 48, 64, "--steps", 2, "--repeats", 1)
    more = ("--device", "cpu", "--precision", "bf16", "--profile", "--no-memory")
    assert run(tool, *args, *more) == 0
    printed = capsys.readouterr().out
    assert "bf16" in printed and "aten::addmm" in printed and "24 GB" not in printed


def test_training_step_that_is_measured_on_a_gpu(tool):
    args = tool.argparse.Namespace(size=[48, 64], batch=2)
    model = tiny_model().train()
    tool.training_loss(model, args, torch.float32).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("threads", [1, 2])
def test_time_of_the_process_needs_one_thread(tool, monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    if threads == 1:
        milliseconds, value = tool.Stopwatch(torch.device("cpu"), "cpu")(lambda: sum(range(10**5)))
        assert milliseconds > 0 and value == sum(range(10**5))
    else:
        with pytest.raises(ValueError, match="OMP_NUM_THREADS=1"):
            tool.Stopwatch(torch.device("cpu"), "cpu")


@pytest.mark.parametrize(
    "words, message",
    [
        (("--repeats", 0), "--repeats is 0"),
        (("--steps", 0, 1), r"--steps is \[0, 1\]"),
        (("--config-file", "none.yaml"), "none.yaml"),
        (("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), "this benchmark is for PSDiff"),
    ],
)
def test_wrong_input(tool, config, capsys, words, message):
    if "--config-file" not in words:
        words = ("--config-file", config, *words)
    with pytest.raises(SystemExit) as error:
        run(tool, *words)
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.gpu
def test_memory_on_a_gpu(tool, config, tmp_path):
    args = ("--config-file", config, "--size", 96, 128, "--steps", 1, 2, "--repeats", 2)
    more = ("--device", "cuda", "--precision", "fp16", "--json", tmp_path / "speed.json")
    assert run(tool, *args, *more) == 0
    memory = json.loads((tmp_path / "speed.json").read_text())["memory_gib"]
    assert memory["fp32"]["total"] > 0 and memory["AMP"]["total"] > 0
