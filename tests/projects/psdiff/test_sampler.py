# SPDX-License-Identifier: Apache-2.0
"""Times of the denoising steps, and diffusers' samplers against their formulas in float64."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from psdiff.box_diffusion import SignalCodec, cosine_alphas_cumprod
from psdiff.sampler import (
    LAMBDA_MIN,
    SAMPLERS,
    SamplerSettings,
    Trajectory,
    build_scheduler,
    compress_noisy_end,
    sampling_times,
)

CODEC = SignalCodec(snr_box=2.0, snr_reid=3.0)
STEPS = [1, 2, 3, 4, 6, 7, 8, 10, 20]


@pytest.mark.parametrize(
    "steps, expected",
    [
        (1, [999]),
        (2, [999, 499]),
        (3, [999, 665, 332]),
        (4, [999, 749, 499, 249]),
        (6, [999, 832, 665, 499, 332, 165]),
        (8, [999, 874, 749, 624, 499, 374, 249, 124]),
        (1000, list(range(1000))[::-1]),
    ],
)
def test_times_are_the_same_for_all_samplers(steps, expected):
    assert sampling_times(steps) == expected
    for name in SAMPLERS:
        assert Trajectory(CODEC, SamplerSettings(name, steps), False).times == expected


@pytest.mark.parametrize("name", SAMPLERS)
def test_diffusers_gets_the_schedule_at_these_times(name):
    scheduler = build_scheduler(SamplerSettings(name, 4))
    assert scheduler.timesteps.tolist() == [3, 2, 1, 0]
    exact = cosine_alphas_cumprod()[[249, 499, 749, 999]]
    assert scheduler.alphas_cumprod.dtype == torch.float64
    torch.testing.assert_close(scheduler.alphas_cumprod[:3], exact[:3], atol=0, rtol=0)
    assert exact[3] == pytest.approx(2.43e-9, rel=1e-2)
    if name == "dpmsolver":
        assert scheduler.alphas_cumprod[3].logit() / 2 == pytest.approx(-5.58, abs=0.01)
    else:
        assert scheduler.alphas_cumprod[3] == exact[3]


def test_compression_keeps_the_order_and_leaves_the_rest_alone():
    exact = cosine_alphas_cumprod()
    lambdas, compressed = exact.logit() / 2, compress_noisy_end(exact).logit() / 2
    assert (compressed.diff() < 0).all()
    low = lambdas < LAMBDA_MIN
    assert 0 < low.sum() < 6
    assert torch.equal(compressed[~low], lambdas[~low])
    assert compressed.min() > -5.6


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": 0}, "MODEL.PSDIFF.STEPS is 0; it must be between 1 and 1000"),
        ({"steps": -1}, "MODEL.PSDIFF.STEPS is -1"),
        ({"steps": 1001}, "MODEL.PSDIFF.STEPS is 1001"),
        ({"steps": 2.5}, "MODEL.PSDIFF.STEPS is 2.5"),
        ({"name": "euler"}, "MODEL.PSDIFF.SAMPLER is 'euler'; allowed: .*dpmsolver"),
        ({"order": 0}, "MODEL.PSDIFF.SOLVER_ORDER is 0; allowed: 1, 2, 3"),
        ({"order": 4, "name": "dpmsolver"}, "MODEL.PSDIFF.SOLVER_ORDER is 4"),
        ({"eta": 1.5}, "MODEL.PSDIFF.ETA is 1.5; it must be between 0 and 1"),
        ({"eta": -0.1}, "MODEL.PSDIFF.ETA is -0.1"),
        ({"eta": float("nan")}, "MODEL.PSDIFF.ETA is nan"),
        ({"eta": 0.5, "name": "dpmsolver++"}, "MODEL.PSDIFF.ETA is 0.5, but .* adds no noise"),
        ({"eta": 0.5, "name": "dpmsolver"}, "MODEL.PSDIFF.ETA 0, or MODEL.PSDIFF.SAMPLER ddim"),
    ],
)
def test_impossible_settings_name_their_key(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**settings)


def test_no_warning_of_diffusers_reaches_the_user():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        schedulers = [build_scheduler(SamplerSettings(name, 17)) for name in SAMPLERS]
        assert [str(warning.message) for warning in shown] == []
        DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    assert any("dpmsolver" in str(warning.message) for warning in shown)  # else nothing was kept
    assert [scheduler.timesteps.tolist() for scheduler in schedulers] == [list(range(17))[::-1]] * 3


# ---- formulas, in float64 and one number at a time ----------------------------------------------
def ddim_step(x, x_start, t, t_next, eta=0.0, noise=0.0):
    """DDIM on predictions of x_0, literally."""
    alphas = cosine_alphas_cumprod()
    ab = alphas[t].item()
    ab_next = alphas[t_next].item() if t_next >= 0 else 1.0
    eps = (x / math.sqrt(ab) - x_start) / math.sqrt(1 / ab - 1)
    sigma = eta * math.sqrt((1 - ab / ab_next) * (1 - ab_next) / (1 - ab))
    direction = math.sqrt(max(1 - ab_next - sigma**2, 0.0)) * eps
    return math.sqrt(ab_next) * x_start + direction + sigma * noise


def levels(ab):
    """alpha, sigma and lambda of the papers on DPM-Solver."""
    return math.sqrt(ab), math.sqrt(1 - ab), 0.5 * math.log(ab / (1 - ab))


def solver_step(name, order, alphas_cumprod, x, starts, states):
    """One step of multistep DPM-Solver (noise form) or DPM-Solver++ (data form).

    Both solve an integral over lambda, from that of the present time s to that of the next time t:
        noise form: x_t = alpha_t / alpha_s x_s - alpha_t int exp(-lambda) eps(lambda) d lambda
        data form:  x_t = sigma_t / sigma_s x_s + sigma_t int exp(lambda) x_0(lambda) d lambda
    in which eps or x_0 is expanded around lambda_s: value + slope u + bend u^2 / 2.

    Args:
        alphas_cumprod: of t, of s, and of the times before s, latest first; ``order`` + 1 numbers.
        x: state at s. starts, states: predictions and states at s and before; ``order`` of each.
    """
    (alpha_t, sigma_t, lambda_t), *known = (levels(ab) for ab in alphas_cumprod)
    alpha_s, sigma_s, lambda_s = known[0]
    h = lambda_t - lambda_s
    if name == "dpmsolver++":
        f = starts
        result = sigma_t / sigma_s * x
        scale, grow = alpha_t, -math.exp(-h)
        integrals = [1 + grow, h - 1 - grow, h * h / 2 - h + 1 + grow]
    else:
        f = [(y - a * y0) / s for y, y0, (a, s, _) in zip(states, starts, known, strict=True)]
        result = alpha_t / alpha_s * x
        scale, grow = -sigma_t, math.exp(h)
        integrals = [grow - 1, grow - 1 - h, grow - 1 - h - h * h / 2]
    result = result + scale * integrals[0] * f[0]
    if order == 1:
        return result
    slope = (f[0] - f[1]) / (lambda_s - known[1][2])
    if order == 2:  # the midpoint rule for the second integral
        return result + scale * integrals[0] * h / 2 * slope
    slope_before = (f[1] - f[2]) / (known[1][2] - known[2][2])
    difference = (slope - slope_before) / (lambda_s - known[2][2])
    slope = slope + difference * (lambda_s - known[1][2])
    # All implementations, diffusers' too, take the second divided difference for the bend; the
    # second derivative would be twice that.
    bend = difference
    return result + scale * (integrals[1] * slope + integrals[2] * bend)


@pytest.mark.parametrize(
    "t, t_next, expected", [(999, 499, 1.062799), (874, 749, 1.041545), (249, 124, 0.772845)]
)
def test_known_values_of_ddim(t, t_next, expected):
    assert ddim_step(1.0, 0.5, t, t_next) == pytest.approx(expected, abs=2e-5)


def walk(settings, renewals=None, seed=0):
    """Predictions that depend on the state, as those of a model do, and what follows from them.

    Returns:
        the clean signals (what the scheduler gets) and the states, float64, one entry per time.
    """
    g = torch.Generator().manual_seed(seed)
    trajectory = Trajectory(CODEC, settings, renewable=renewals is not None)
    boxes, reid = torch.randn(2, 5, 4, generator=g), torch.randn(2, 5, 8, generator=g)
    starts, states = [], []
    for index in range(len(trajectory.times)):
        boxes_start = 3 * torch.sin(boxes + index)
        reid_start = torch.cos(2 * reid - index)
        clean = torch.cat([CODEC.clamp_boxes(boxes_start), CODEC.encode_reid(reid_start)], -1)
        starts.append(clean.double())
        states.append(torch.cat([boxes, reid], -1).double())
        if index == len(trajectory.times) - 1:
            return starts, states
        noise = torch.randn(2, 5, 12, generator=g)
        boxes, reid = trajectory.step(boxes_start, reid_start, boxes, reid, noise)
        if renewals is not None:
            rows = renewals[index]
            fresh = torch.randn(2, 5, 12, generator=g)
            boxes = torch.where(rows[..., None], fresh[..., :4], boxes)
            reid = torch.where(rows[..., None], fresh[..., 4:], reid)
            trajectory.renew(rows)


@pytest.mark.parametrize("steps", [*STEPS, 1000])
def test_ddim_equals_the_closed_form(steps):
    starts, states = walk(SamplerSettings("ddim", steps))
    times = sampling_times(steps)
    for i in range(steps - 1):
        expected = ddim_step(states[i], starts[i], times[i], times[i + 1])
        torch.testing.assert_close(states[i + 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_noise_of_ddim_equals_the_closed_form(steps):
    g = torch.Generator().manual_seed(0)
    trajectory = Trajectory(CODEC, SamplerSettings("ddim", steps, eta=1.0), False)
    for t, t_next in zip(trajectory.times, trajectory.times[1:], strict=False):
        boxes_start, boxes = torch.rand(2, 5, 4, generator=g) * 4 - 2, torch.randn(2, 5, 4)
        reid_start, reid = torch.randn(2, 5, 8, generator=g), torch.randn(2, 5, 8)
        noise = torch.randn(2, 5, 12, generator=g)
        new_boxes, new_reid = trajectory.step(boxes_start, reid_start, boxes, reid, noise)
        expected = ddim_step(boxes, boxes_start, t, t_next, 1.0, noise[..., :4])
        torch.testing.assert_close(new_boxes, expected, atol=1e-5, rtol=1e-5)
        expected = ddim_step(reid, CODEC.encode_reid(reid_start), t, t_next, 1.0, noise[..., 4:])
        torch.testing.assert_close(new_reid, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_first_order_of_the_data_form_is_ddim(steps):
    starts, states = walk(SamplerSettings("dpmsolver++", steps, order=1))
    times = sampling_times(steps)
    for i in range(steps - 1):
        expected = ddim_step(states[i], starts[i], times[i], times[i + 1])
        torch.testing.assert_close(states[i + 1], expected, atol=1e-5, rtol=1e-5)


def order_used(order, index, steps):
    """Multistep solvers start with order 1; with few steps diffusers ends on a low order."""
    ends_low = 2 if order == 3 and steps < 15 and index == steps - 2 else order
    return min(order, index + 1, ends_low)


@pytest.mark.parametrize("steps", [2, 4, 7, 8, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["dpmsolver", "dpmsolver++"])
def test_solvers_equal_their_formulas(name, order, steps):
    starts, states = walk(SamplerSettings(name, steps, order))
    alphas = cosine_alphas_cumprod()
    if name == "dpmsolver":
        alphas = compress_noisy_end(alphas)
    ab = [alphas[t].item() for t in sampling_times(steps)]
    # The noise form divides by sqrt(ab), so that rounding errors of its first step grow.
    tolerance = 2e-4 if name == "dpmsolver" else 1e-5
    for i in range(steps - 1):
        used = order_used(order, i, steps)
        history = range(i, i - used, -1)
        expected = solver_step(
            name, used, [ab[i + 1], *(ab[j] for j in history)], states[i],
            [starts[j] for j in history], [states[j] for j in history],
        )  # fmt: skip
        torch.testing.assert_close(states[i + 1], expected, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("name", ["dpmsolver", "dpmsolver++"])
def test_orders_differ_from_the_step_on_from_which_they_can(name):
    first, second, third = (walk(SamplerSettings(name, 5, order))[1] for order in (1, 2, 3))
    torch.testing.assert_close(first[1], second[1])  # nothing to extrapolate from yet
    assert (first[2] - second[2]).abs().max() > 1e-3
    torch.testing.assert_close(second[2], third[2])
    assert (second[3] - third[3]).abs().max() > 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_very_many_steps_stay_finite(name):
    _, states = walk(SamplerSettings(name, 500))
    assert all(torch.isfinite(state).all() for state in states)
    assert states[-1].abs().max() < 10


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trajectory_forgets_the_one_before(name):
    settings = SamplerSettings(name, 4, 3)
    first = walk(settings)[1][-1]
    walk(settings, seed=1)
    assert torch.equal(walk(settings)[1][-1], first)


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_the_box_part_is_clamped(name):
    trajectory = Trajectory(CODEC, SamplerSettings(name, 2, 1), False)
    far, reid = torch.full((1, 1, 4), 7.0), torch.tensor([[[0.3, 0.4]]])
    boxes, embeddings = trajectory.step(far, reid, far * 0, reid * 0)
    # From a state of zeros only the share of the clean signal is left.
    assert boxes.unique().item() == pytest.approx(2 * math.sqrt(0.493844), abs=0.02)
    ratio = embeddings[0, 0] / boxes[0, 0, 0]
    torch.testing.assert_close(ratio, torch.tensor([0.9, 1.2]), atol=1e-4, rtol=0)


# ---- renewal ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_renewed_proposal_starts_over(name, order):
    """Its first step has order 1, the second order 2: only its own predictions count."""
    steps, when = 7, 2
    no_rows = torch.zeros(2, 5, dtype=torch.bool)
    rows = no_rows.clone()
    rows[0, 1] = rows[1, 4] = True
    renewals = [rows if index == when else no_rows for index in range(steps)]
    starts, states = walk(SamplerSettings(name, steps, order), renewals=renewals)
    alphas = cosine_alphas_cumprod()
    if name == "dpmsolver":
        alphas = compress_noisy_end(alphas)
    ab = [alphas[t].item() for t in sampling_times(steps)]
    for i in range(steps - 1):
        for rows_now, born in ((rows, when + 1), (~rows, 0)):
            if i < born:
                continue
            if i == when:  # the state after it is the new noise
                rows_now = rows_now & ~rows
            used = min(order_used(order, i, steps), i - born + 1)
            history = range(i, i - used, -1)
            expected = solver_step(
                name, used, [ab[i + 1], *(ab[j] for j in history)], states[i][rows_now],
                [starts[j][rows_now] for j in history], [states[j][rows_now] for j in history],
            )  # fmt: skip
            result = states[i + 1][rows_now]
            torch.testing.assert_close(result, expected, atol=2e-4, rtol=1e-5)


def test_renewal_of_no_proposal_changes_nothing():
    no_rows = torch.zeros(2, 5, dtype=torch.bool)
    for name in SAMPLERS:
        settings = SamplerSettings(name, 6, 3)
        plain = walk(settings, renewals=[no_rows] * 6)[1][-1]
        trajectory = Trajectory(CODEC, settings, renewable=False)
        assert len(trajectory.times) == 6
        g = torch.Generator().manual_seed(0)
        boxes, reid = torch.randn(2, 5, 4, generator=g), torch.randn(2, 5, 8, generator=g)
        for index in range(5):
            start = 3 * torch.sin(boxes + index), torch.cos(2 * reid - index)
            boxes, reid = trajectory.step(*start, boxes, reid)
        assert torch.equal(plain, torch.cat([boxes, reid], -1).double())


IN_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from psdiff.sampler import SamplerSettings, build_scheduler

def build(steps):
    while steps > 1 and "diffusers" not in sys.modules:
        pass  # until the first thread loads it
    return build_scheduler(SamplerSettings("ddim", steps))

with ThreadPoolExecutor(2) as pool:
    print([len(made.timesteps) for made in pool.map(build, (1, 2))])
"""


@pytest.mark.slow
def test_threads_may_build_the_first_schedulers():
    """Indexing runs the model in several threads; diffusers is not loaded before."""
    done = subprocess.run([sys.executable, "-c", IN_THREADS], capture_output=True, text=True)
    assert done.stdout == "[1, 2]\n", done.stderr
