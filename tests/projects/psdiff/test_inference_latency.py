# SPDX-License-Identifier: Apache-2.0
"""From milliseconds to a number of steps: the rule, the measurement, and what a model does."""

import copy
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from psdiff_runs import agree_on_steps
from psdiff_tiny import image_input, tiny_cfg, tiny_model
from two_processes import run_in_two_processes

from psdiff import inference_latency
from psdiff.inference_latency import Calibration, LatencyMeter, calibrate, steps_within
from psdiff.inference_settings import InferenceSettings

CPU = torch.device("cpu")
TIMES = Calibration((48, 64), fixed_ms=20.0, step_ms=5.0)


# ---- the rule -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("budget_ms", "max_steps", "expected"),
    [
        (1000.0, 8, 8),
        (60.0, 8, 8),
        (59.9, 8, 7),
        (45.0, 8, 5),
        (44.9, 8, 4),
        (25.0, 8, 1),
        (24.9, 8, 1),  # one step already takes 25 ms
        (0.1, 8, 1),
        (1000.0, 1, 1),
        (1000.0, 500, 196),
    ],
)
def test_steps_within(budget_ms, max_steps, expected):
    assert steps_within(budget_ms, TIMES, max_steps) == expected


def test_steps_that_take_no_time():
    free = Calibration((1, 1), fixed_ms=20.0, step_ms=0.0)
    assert steps_within(20.0, free, 8) == 8
    assert steps_within(19.0, free, 8) == 1


@given(
    budget=st.floats(0.01, 1e5),
    fixed=st.floats(0, 1e4),
    step=st.floats(0, 1e3),
    most=st.integers(1, 1000),
)
def test_no_more_steps_fit(budget, fixed, step, most):
    times = Calibration((1, 1), fixed, step)
    steps = steps_within(budget, times, most)
    assert 1 <= steps <= most
    assert steps == 1 or times.latency_ms(steps) <= budget
    assert steps == most or times.latency_ms(steps + 1) > budget


# ---- the measurement ----------------------------------------------------------------------------
class _Clock:
    """Stands for the module ``time``: it is as late as the functions say."""

    def __init__(self):
        self.now, self.calls = 0.0, 0

    def perf_counter(self):
        return self.now

    def spend(self, ms, warm_up=0.0):
        self.calls += 1
        self.now += (ms + (warm_up if self.calls == 1 else 0.0)) / 1e3


def test_calibration_takes_the_parts_apart(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(inference_latency, "time", clock)
    result = calibrate(
        lambda: clock.spend(40.0), lambda steps: clock.spend(2.0 + 7.0 * steps), (48, 64), CPU
    )
    assert result.fixed_ms == pytest.approx(42.0) and result.step_ms == pytest.approx(7.0)
    assert result.image_size == (48, 64)
    assert result.latency_ms(4) == pytest.approx(70.0)


def test_the_first_call_does_not_count_and_short_ones_are_repeated(monkeypatch):
    for ms, calls in ((500.0, 4), (30.0, 8), (1.0, 21)):
        clock = _Clock()
        monkeypatch.setattr(inference_latency, "time", clock)
        median = inference_latency.median_ms(lambda c=clock, ms=ms: c.spend(ms, 9000.0), CPU)
        assert median == pytest.approx(ms)
        assert clock.calls == calls


# ---- a model ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def plain_model():
    return tiny_model(STEPS=6).eval()


@pytest.fixture
def model(plain_model):
    return copy.deepcopy(plain_model)


@pytest.fixture
def timed(model, monkeypatch):
    """The model on a machine that takes ``TIMES``; ``measured`` lists the sizes asked for."""
    measured = []

    def measure(encode, denoise, image_size, device):
        encode()
        denoise(3)
        measured.append(image_size)
        return Calibration(image_size, TIMES.fixed_ms, TIMES.step_ms)

    monkeypatch.setattr(inference_latency, "calibrate", measure)
    model.measured = measured
    return model


def steps_taken(model, *args, **kwargs):
    calls = []
    hook = model.head.register_forward_hook(lambda *_: calls.append(1))
    model.inference(*args, **kwargs)
    hook.remove()
    return len(calls)


def test_a_budget_becomes_steps(timed):
    item = image_input()
    timed.inference([item], latency_budget_ms=32.0)  # measures
    assert steps_taken(timed, [item]) == 6, "no budget"
    assert steps_taken(timed, [item], latency_budget_ms=32.0) == 2
    assert timed.measured == [(800, 1333)], "the largest image that INPUT allows"
    timed.set_inference(latency_budget_ms=42.0)
    timed.inference([item])
    assert steps_taken(timed, [item]) == 4
    assert steps_taken(timed, [item], latency_budget_ms=0.0) == 6
    timed.inference([item], steps=3)
    assert steps_taken(timed, [item], steps=3) == 3, "STEPS stays the upper bound"
    assert timed.measured == [(800, 1333)], "once for all budgets"


def test_every_image_gets_as_many_steps_however_large_it_is(timed):
    timed.latency.test_size = None  # INPUT.MIN_SIZE_TEST 0: the first image stands for all
    timed.set_inference(latency_budget_ms=32.0)
    timed.inference([image_input()])
    assert steps_taken(timed, [image_input(size=(96, 64))]) == 2
    assert timed.measured == [(48, 64)]


def test_other_sizes_and_settings_are_measured_apart(timed):
    assert timed.steps_within(32.0, (48, 64)) == 2
    assert timed.steps_within(1000.0, (48, 64)) == 6
    assert timed.steps_within(1000.0, (48, 64), steps=100) == 100
    assert timed.measured == [(48, 64)]
    timed.steps_within(32.0, (64, 64))
    timed.steps_within(32.0, (48, 64), sampler="dpmsolver++")
    assert timed.measured == [(48, 64), (64, 64), (48, 64)]
    timed.latency.test_size = None
    with pytest.raises(ValueError, match="image_size is required"):
        timed.steps_within(32.0)


def test_measurement_and_choice_are_one_line_and_a_warning_comes_once(timed, caplog):
    caplog.set_level(logging.INFO, "psdiff")
    for _ in range(3):
        timed.inference([image_input()], latency_budget_ms=32.0)
    (record,) = caplog.records
    assert record.getMessage() == (
        "Latency budget 32 ms: 2 of at most 6 steps, about 30 ms (measured for an image of "
        "1333 x 800 pixels: 20 ms + 5 ms per step)."
    )
    caplog.clear()
    for _ in range(3):
        timed.inference([image_input()], latency_budget_ms=10.0)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and len(caplog.records) == 2
    assert "LATENCY_BUDGET_MS 10 is too short: one step" in warnings[0]
    assert "about 25 ms" in warnings[0]


def test_a_real_measurement(model):
    size = (48, 64)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    times = model.latency.calibrate(model, model.settings, size)
    assert torch.equal(torch.rand(1), expected), "the global generator is left alone"
    assert times.fixed_ms > 0 and times.step_ms > 0
    assert model.latency.calibrate(model, model.settings, size) is times
    assert model.steps_within(1e9, size) == 6 and model.steps_within(1e-6, size) == 1
    assert model.steps_within(times.latency_ms(3) * 1.0001, size) == 3


@pytest.mark.parametrize(
    ("least", "greatest", "expected"),
    [(800, 1333, (800, 1333)), (800, 600, (600, 600)), (0, 1333, None)],
)
def test_size_of_the_largest_test_image(least, greatest, expected):
    from detectron2.modeling import build_model

    cfg = tiny_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = least, greatest
    assert build_model(cfg).latency.test_size == expected


def test_all_processes_take_the_steps_of_the_slowest():
    alone = LatencyMeter()
    alone.calibrate = lambda *_: TIMES
    assert alone.agreed_steps(None, InferenceSettings(latency_budget_ms=50.0), (48, 64)) == 6
    run_in_two_processes(agree_on_steps)


@pytest.mark.gpu
def test_a_cuda_device_is_waited_for():
    device = torch.device("cuda")
    a = torch.randn(4096, 4096, device=device)
    slow = inference_latency.median_ms(lambda: [a @ a for _ in range(50)], device)
    assert slow > 20 * inference_latency.median_ms(lambda: a @ a, device)
