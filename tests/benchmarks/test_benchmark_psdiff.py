# SPDX-License-Identifier: Apache-2.0
"""The benchmark from end to end at tiny size, and its memory figures against known ones.

Times are not asserted, beyond that they exist.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes
from psdiff_tiny import tiny_cfg, tiny_model
from torch import nn

from person_search.utils.training_memory import LiveMemory, simulate_training
from psdiff.training_memory import FinestLevelPooler, calculate_training_memory

TOOL = Path(__file__).resolve().parents[2] / "benchmarks" / "benchmark_psdiff.py"
N = 64


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_psdiff", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_psdiff"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_psdiff"]


# ---- memory ------------------------------------------------------------------------------------


def mlp():
    return nn.Sequential(nn.Linear(N, N, bias=False), nn.ReLU(), nn.Linear(N, N, bias=False))


def mlp_step(module):
    return module(torch.empty(N, N)).sum()


def test_memory_of_a_perceptron():
    """All matrices are N x N, of u bytes. Two weights and the input are there from the start.

    The worst moment is in the backward pass, at the ReLU: alive are the weights (2), the input,
    the hidden features, the gradient of the second weight, and the gradients of the hidden
    features after and before the ReLU: 7 u. The loss and its gradient are single numbers.
    """
    unit = N * N * 4
    memory = simulate_training(mlp(), mlp_step)
    assert memory.parameters == memory.gradients == 2 * unit
    assert memory.optimizer == 4 * unit
    peak = memory.total - memory.optimizer
    assert peak == pytest.approx(7 * unit, abs=64)


def test_memory_of_a_perceptron_in_mixed_precision():
    """The same moment: weights in both precisions (2 + 1), the input (1 and, cast, 1/2), then
    hidden features, gradient of the second weight and the two of the hidden features, 1/2 each."""
    unit = N * N * 4
    memory = simulate_training(mlp(), mlp_step, amp=True)
    peak = memory.total - memory.optimizer
    assert 5.5 * unit <= peak <= 6.7 * unit
    assert memory.activations < simulate_training(mlp(), mlp_step).activations + unit


def test_tensors_without_data_take_what_real_ones_take():
    """The same network with and without data, some of it frozen."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(inplace=True), nn.Flatten(2), nn.LayerNorm(49), nn.Linear(49, 16), nn.GELU(),
    )  # fmt: skip
    module[0].requires_grad_(False)
    memory = simulate_training(module, lambda m: m(torch.randn(4, 3, 16, 16)).square().sum())
    with LiveMemory() as live:
        for tensor in (*module.parameters(), *module.buffers()):
            live.add(tensor)
        module(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert memory.total - memory.optimizer == live.peak
    assert memory.gradients == sum(p.numel() * 4 for p in module.parameters() if p.requires_grad)


def test_live_memory_forgets_what_is_freed():
    with LiveMemory() as live:
        x = torch.zeros(100)
        y = x[10:20]  # a view is no memory of its own
        assert live.now == 400
        del x
        assert live.now == 400, "the view holds it"
        del y
        z = torch.zeros(50)
        assert live.now == 200 and live.peak == 400
    del z
    assert live.now == 0


def test_layer_norm_keeps_float32_in_mixed_precision():
    """As on a GPU: float32 in and out, so that its input is held in both precisions."""
    seen = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x):
            x = self.linear(x)
            y = self.norm(x)
            seen.extend([x.dtype, y.dtype, (x @ x.T).softmax(dim=-1).dtype])
            return y.sum()

    simulate_training(Probe(), lambda m: m(torch.empty(2, 4)), amp=True)
    assert seen == [torch.float16, torch.float32, torch.float32]
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        Probe()(torch.zeros(2, 4))
    assert seen[1:] == [torch.bfloat16] * 2, "afterwards autocast is as it was"


def test_memory_of_the_model_grows_with_images_and_shrinks_with_amp():
    model = tiny_model().train()
    pooler, weights = model.head.pooler, [p.clone() for p in model.parameters()]
    size = (96, 128)
    one, two = (calculate_training_memory(model, n, size, amp=False) for n in (1, 2))
    assert 1.7 < two.activations / one.activations < 2.1
    half = calculate_training_memory(model, 2, size, amp=True)
    assert half.activations < two.activations
    assert model.head.pooler is pooler
    for before, after in zip(weights, model.parameters(), strict=True):
        assert after.grad is None and torch.equal(before, after)


def test_stand_in_for_the_pooler_has_its_shapes():
    model = tiny_model()
    features = [torch.randn(2, 16, 12, 16), torch.randn(2, 16, 6, 8)]
    boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0]])
    inputs = features, [Boxes(boxes), Boxes(boxes)]
    stand_in = FinestLevelPooler(model.head.pooler)
    assert stand_in(*inputs).shape == model.head.pooler(*inputs).shape


# ---- the tool ----------------------------------------------------------------------------------


def run(tool, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark_psdiff.py", *map(str, words)])
    return tool.main()


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(tiny_cfg().dump())
    return path


def test_tool(tool, config, tmp_path, monkeypatch, capsys):
    args = ("--config-file", config, "--size", 50, 64, "--steps", 4, 1, "--repeats", 2)
    more = ("--batch", 2, "--device", "cpu", "--json", tmp_path / "speed.json")
    assert run(tool, monkeypatch, *args, *more) == 0
    result = json.loads((tmp_path / "speed.json").read_text())
    assert list(result["image_ms"]) == list(result["speed"]) == ["1", "4"]
    assert result["speed"]["1"] == 1.0 and 0 < result["speed"]["4"]
    assert all(result[f"{part}_ms"] > 0 for part in ("backbone", "pool", "denoise", "select"))
    assert result["memory_gib"]["AMP"]["total"] < result["memory_gib"]["fp32"]["total"]
    for parts in result["memory_gib"].values():
        total = parts.pop("total")
        assert total == pytest.approx(sum(parts.values())) and total > 0
    printed = capsys.readouterr().out
    assert " 0.68 " in printed, "the paper's figure beside 4 steps"
    assert "fits in 24 GB" in printed


def test_tool_in_half_precision_with_profile(tool, config, monkeypatch, capsys):
    args = ("--config-file", config, "--size", 48, 64, "--steps", 2, "--repeats", 1)
    more = ("--device", "cpu", "--precision", "bf16", "--profile", "--no-memory")
    assert run(tool, monkeypatch, *args, *more) == 0
    printed = capsys.readouterr().out
    assert "bf16" in printed and "aten::addmm" in printed and "24 GB" not in printed


def test_training_step_that_is_measured_on_a_gpu(tool, monkeypatch):
    args = tool.argparse.Namespace(size=[48, 64], batch=2)
    model = tiny_model().train()
    tool.training_loss(model, args, amp=False).backward()
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
def test_wrong_input(tool, config, monkeypatch, capsys, words, message):
    if "--config-file" not in words:
        words = ("--config-file", config, *words)
    with pytest.raises(SystemExit) as error:
        run(tool, monkeypatch, *words)
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.gpu
def test_memory_on_a_gpu(tool, config, tmp_path, monkeypatch):
    args = ("--config-file", config, "--size", 96, 128, "--steps", 1, 2, "--repeats", 2)
    more = ("--device", "cuda", "--precision", "fp16", "--json", tmp_path / "speed.json")
    assert run(tool, monkeypatch, *args, *more) == 0
    memory = json.loads((tmp_path / "speed.json").read_text())["memory_gib"]
    assert memory["fp32"]["total"] > 0 and memory["AMP"]["total"] > 0
