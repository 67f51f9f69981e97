# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the frozen part at tiny size, and its helpers; times must only exist."""

import json

import pytest
import torch
from diffusion_cost import MemoryCurve, frozen_teraflops, teraflops
from peak_memory import peak_bytes
from programs import load_program
from timing import Timing, check_clock, time_interleaved

SMALL_HEADS = [
    *("MODEL.DIFFPS.MSFRN.DIM", "32"),  # as wide as the text vectors
    *("MODEL.DIFFPS.DET_AGG.DIM", "16"),
    *("MODEL.DIFFPS.HEAD.RES5_WIDTH", "12"),
    *("MODEL.REID.EMBED_DIM", "24"),
]


@pytest.fixture(scope="module")
def tool():
    return load_program("benchmarks/benchmark_diffps.py")


def test_all_parts_at_tiny_size(tool, tmp_path, capsys):
    path = tmp_path / "results.json"
    arguments = ["--family", "tiny", "--size", "64", "--repeats", "2", "--device", "cpu"]
    arguments += ["--memory-sizes", "64", "128", "192", "--json", str(path)]
    arguments += ["--parts", "frozen", "low", "memory", "step", "--traceback"]
    assert tool.main([*arguments, *SMALL_HEADS]) == 0
    results, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert max(results["differences"].values()) < 1e-4
    assert all(row["median"] > 0 for row in results["rows"] if "median" in row)
    names = [row["name"] for row in results["rows"]]
    for variant in ("(a)", "(d)", "here, bfloat16", "compact", "latent cache", "feature cache"):
        assert any(variant in name for name in names) and variant in shown
    assert results["cache_mb"]["compact"] < results["cache_mb"]["feature"]
    assert {row["part"] for row in results["memory"]} > {"UNet, as in the release", "VAE"}
    assert results["teraflops"]["UNet, truncated"] < results["teraflops"]["UNet"]
    assert "GB less" in shown and "Training step" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100"], "must be a multiple of 64"),
        (["--memory-sizes", "64", "128"], "three different sizes"),
        (["--repeats", "0"], "must be at least 1"),
    ],
)
def test_invalid_arguments_are_named(tool, arguments, message, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(arguments)
    assert message in capsys.readouterr().err


def test_different_features_end_the_benchmark(tool):
    plain = {"u3r0_k": torch.ones(4), "attn": torch.zeros(4)}
    fast = {"u3r0_k": torch.ones(4) * 1.01, "attn": torch.ones(4)}
    with pytest.raises(RuntimeError, match="differ"):
        tool.check_equal(plain, fast, "float32")
    assert tool.check_equal(plain, fast, "float16") == {"u3r0_k": pytest.approx(0.01)}


def test_rois_are_scaled_with_the_area(tool):
    cfg = tool.build_cfg(tool.parse_args(["--family", "tiny", "--device", "cpu"]))
    scaled = tool.scaled_to_area(cfg, 640)
    assert scaled.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 128 // 4
    assert scaled.MODEL.RPN.POST_NMS_TOPK_TRAIN == 2000 // 4
    assert tool.scaled_to_area(cfg, 1280).MODEL.RPN.PRE_NMS_TOPK_TRAIN == 12000


# ---- time --------------------------------------------------------------------------------------
def test_variants_are_called_in_changing_order():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = time_interleaved(variants, 3)
    assert "".join(calls) == "cab" + "abc" + "bca" + "cab"
    assert all(len(times[name]) == 3 for name in "abc")


def test_ratios_are_taken_within_a_repeat():
    timing = Timing("twice as fast", [1.0, 10.0, 2.0], against=[2.0, 40.0, 2.0])
    assert timing.median == 2.0 and timing.ratios == (2.0, 1.0, 4.0)


def test_time_of_the_process_is_refused_on_a_gpu():
    with pytest.raises(ValueError, match="on cuda"):
        check_clock("cpu", "cuda")


# ---- memory and operations ---------------------------------------------------------------------
def test_peak_of_a_call_whose_memory_is_known():
    def function():
        first = torch.ones(8_000_000)  # 32 MB
        del first
        return torch.ones(10_000_000) + 1  # 40 MB twice

    assert peak_bytes(function) == pytest.approx(80e6, abs=100)
    assert peak_bytes(lambda: None) == 0


def test_a_polynomial_is_recovered():
    cells = lambda side: (side // 8) ** 2  # noqa: E731
    sides = [256, 320, 512, 640]
    measured = [5e7 + 3e4 * cells(side) + 40 * cells(side) ** 2 for side in sides]
    curve = MemoryCurve.fit(sides, measured, explicit_attention=True)
    assert curve.coefficients == pytest.approx((5e7, 3e4, 40), rel=1e-6)
    assert curve.at(1280) == pytest.approx(5e7 + 3e4 * 25600 + 40 * 25600**2)
    half = curve.from_float32_to_half()
    assert half.coefficients == pytest.approx((2.5e7, 1.5e4, 30), rel=1e-6)
    linear = MemoryCurve.fit(sides, [1e6 + 7 * cells(s) for s in sides], explicit_attention=False)
    assert linear.coefficients == pytest.approx((1e6, 7), rel=1e-6)


def test_operations_by_hand_and_of_the_tiny_model():
    a, b = torch.randn(3, 5), torch.randn(5, 7, requires_grad=True)
    assert teraflops(lambda: a @ b) * 1e12 == 2 * 3 * 5 * 7
    # backward: the gradient of b alone, as large again
    assert teraflops(lambda: (a @ b).sum().backward()) * 1e12 == 2 * 2 * 3 * 5 * 7
    counted = frozen_teraflops("tiny", 64)
    assert 0 < counted["UNet, truncated"] < counted["UNet"]
