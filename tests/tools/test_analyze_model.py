# SPDX-License-Identifier: Apache-2.0
"""Counted operations against formulas worked out by hand, and the tool from end to end.

Shape shorthand: M windows of S cells with C channels, N proposals.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from psdiff_tiny import tiny_cfg, tiny_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import RoIAlign

from person_search.utils.flops import count_flops
from psdiff.cdl import DynamicConvolution, ProposalSelfAttention, WindowCrossAttention

TOOL = Path(__file__).resolve().parents[2] / "tools" / "analyze_model.py"
N, S, C, HEADS = 6, 9, 16, 4


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("analyze_model", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["analyze_model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["analyze_model"]


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def fast_path(request):
    """PyTorch's fused attention in eval mode, on and off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield request.param
    torch.backends.mha.set_fastpath_enabled(before)


def norms(count):
    return count.by_operator.get("layer_norm", 0)


# ---- rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["proposals", "cells"])
def test_self_attention(over, fast_path):
    """Four projections C x C per token, then scores and weighted sum of all pairs of tokens."""
    sequences, tokens = (1, N) if over == "proposals" else (N, S)
    by_hand = sequences * 2 * (4 * tokens * C * C + 2 * tokens * tokens * C)
    count = count_flops(ProposalSelfAttention(C, HEADS, over).eval(), (torch.randn(1, N, S, C),))
    assert count.total - norms(count) == by_hand
    assert norms(count) == 5 * N * S * C
    assert not count.suspicious
    used = any("_native_multi_head_attention" in name for name in count.by_operator)
    assert used == fast_path


def test_dynamic_convolution():
    hidden, out = 3, 5
    by_hand = 2 * N * C * (C * hidden + hidden * out)  # the kernels
    by_hand += 2 * N * S * (C * hidden + hidden * out)  # their application
    by_hand += 2 * N * S * out * C  # joining the cells
    module = DynamicConvolution(C, S, hidden, out)
    count = count_flops(module, (torch.randn(N, S, C), torch.randn(N, C)))
    assert count.total - norms(count) == by_hand


def test_cross_attention():
    """Query and output C x C; each head's key and value projection C x C / heads; S scores of C
    channels and a weighted sum of as many, for each head."""
    by_hand = 2 * N * (4 * C * C + 2 * HEADS * S * C)
    module = WindowCrossAttention(C, HEADS)
    count = count_flops(module, (torch.randn(N, C), torch.randn(N, S, C)))
    assert count.total == by_hand
    tokens, windows = torch.randn(N, 1, C), torch.randn(N, S, C)
    plain = nn.MultiheadAttention(C, HEADS, batch_first=True)
    with FlopCounterMode(display=False) as counter:
        plain(tokens, windows, windows)
    assert count.total < counter.get_total_flops(), "what PyTorch's own module takes"


def test_roi_align():
    rois = torch.tensor([[0.0, 0, 0, 8, 8], [0.0, 2, 2, 9, 30]])
    image = torch.randn(1, C, 32, 32)
    count = count_flops(RoIAlign((7, 7), 1.0, sampling_ratio=2), (image, rois))
    assert count.total == len(rois) * C * 7 * 7 * 4 * 4 * 2
    count = count_flops(RoIAlign((7, 7), 1.0, sampling_ratio=0), (image, rois))
    assert count.total == 0 and count.suspicious == ["torchvision::roi_align"]


def test_convolutions():
    image = torch.randn(2, 4, 10, 12)
    count = count_flops(nn.Conv2d(4, 6, 3, padding=1, groups=2), (image,))
    assert count.total == 2 * (2 * 6 * 10 * 12) * (2 * 9)
    count = count_flops(nn.ConvTranspose2d(4, 6, 2, stride=2), (image,))
    assert count.total == 2 * (2 * 10 * 12) * 4 * 6 * 4


def test_what_has_no_rule_is_named():
    count = count_flops(nn.Sequential(nn.LSTM(4, 4)), (torch.randn(3, 4),))
    assert count.suspicious == ["aten::lstm"]
    count = count_flops(nn.GELU(), (torch.randn(3),))
    assert count.uncounted == {"aten::gelu": 1} and not count.suspicious


def test_a_whole_step_agrees_with_the_counter_of_pytorch(fast_path):
    """Which looks at the kernels that run, and knows nothing of norms and RoIAlign."""

    class Step(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, roi_feats, boxes, reid_signal, t):
            output = self.head.denoise(roi_feats, boxes, reid_signal, t)
            return output.boxes, output.logits, output.reid_feats

    module = Step(tiny_model().eval().head)

    boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0]]).expand(1, N, 4)
    inputs = (torch.randn(1, N, 9, 16), boxes, torch.randn(1, N, 16), torch.tensor([500]))
    step = count_flops(module, inputs)
    # Fused kernels on the CPU are unknown to that counter.
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    assert step.total - norms(step) == counter.get_total_flops()


# ---- the tool ----------------------------------------------------------------------------------


def run(tool, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["analyze_model.py", *map(str, words)])
    return tool.main()


def config_file(cfg, folder):
    path = folder / "config.yaml"
    path.write_text(cfg.dump())
    return path


def test_tool(tool, tmp_path, monkeypatch, capsys):
    cfg = tiny_cfg()
    path = config_file(cfg, tmp_path)
    outputs = ("--json", tmp_path / "cost.json", "--markdown", tmp_path / "cost.md")
    args = ("--config-file", path, "--size", 50, 64, "--steps", 3, 1)
    assert run(tool, monkeypatch, *args, *outputs) == 0
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
    assert "| one step |" in (tmp_path / "cost.md").read_text()


def test_tool_on_another_architecture(tool, tmp_path, monkeypatch):
    from tiny_model import tiny_cfg as other_cfg

    path = config_file(other_cfg(str(tmp_path), "unused"), tmp_path)
    args = ("--config-file", path, "--size", 64, 96, "--json", tmp_path / "cost.json")
    assert run(tool, monkeypatch, *args) == 0
    cost = json.loads((tmp_path / "cost.json").read_text())
    convolutions = 2 * 16 * 24 * 16 * (3 * 16) + 2 * 8 * 12 * 16 * (16 * 9)
    convolutions += 2 * 8 * 12 * 3 * (16 * 25)
    assert convolutions <= cost["total"]["1"] * 1e9 < 1.5 * convolutions
    assert set(cost["parameters"]) == {"features", "detect", "embed", "classify"}


def test_wrong_input(tool, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as error:
        run(tool, monkeypatch, "--config-file", "x.yaml", "--size", 8, 64)
    assert error.value.code == 2
    with pytest.raises(SystemExit) as error:
        run(tool, monkeypatch, "--config-file", tmp_path / "none.yaml")
    assert error.value.code == 2
    assert "none.yaml" in capsys.readouterr().err


def test_cost_of_the_paper(tool, repo_root):
    """Table II: 31 M parameters, and 301 / 309 / 333 / 390 GFLOPs at 1333 x 800."""
    args = tool.argparse.Namespace(
        config_file=str(repo_root / "configs/PSDiff/psdiff_r50_fpn_cuhk_sysu.yaml"),
        size=[64, 64],
        steps=[1, 2, 4, 8],
        opts=[],
    )
    cost = tool.analyze(args)
    assert 30.5e6 <= sum(cost.parameters.values()) <= 31.5e6
    # the backbone works per pixel, the head per box
    backbone = cost.backbone * (800 * 1344) / (64 * 64)
    assert backbone == pytest.approx(297.5, abs=0.1)
    step = sum(cost.step.values())
    for steps, limit in {1: 303, 2: 309, 4: 333, 8: 390}.items():
        assert backbone + steps * step <= limit
    assert not cost.suspicious
