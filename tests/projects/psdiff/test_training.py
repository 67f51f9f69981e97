# SPDX-License-Identifier: Apache-2.0
"""Training of PSDiff as a whole: mixed precision, several processes, the image's own frame."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from psdiff_runs import compare_with_joint_batch, with_fixed_noise
from psdiff_tiny import EMBED_DIM, image_input, tiny_model, training_input
from two_processes import run_in_two_processes

from person_search.engine.train_step import StepTrainer
from psdiff.box_diffusion import boxes_to_norm, cosine_alphas_cumprod, norm_to_boxes
from psdiff.cdl import DynamicConvolution
from psdiff.head import HeadOutput

HALVES = [torch.bfloat16, torch.float16]


def autocast(dtype: torch.dtype | None):
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


# ---- mixed precision -------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("switches", [{}, {"CDL__SA_OVER": "cells", "MATCHER": "hungarian"}])
def test_training_in_mixed_precision(dtype, switches) -> None:
    model = tiny_model(**switches).train()
    inputs = [training_input(2), training_input(1, size=(40, 56), seed=1)]
    runs = []
    for precision in (None, dtype):
        copied = copy.deepcopy(model)
        torch.manual_seed(3)
        with autocast(precision):
            losses = copied(inputs)
        sum(losses.values()).backward()
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        assert all(p.grad.isfinite().all() for p in copied.parameters())
        runs.append({name: loss.item() for name, loss in losses.items()})
    assert runs[1] == pytest.approx(runs[0], rel=0.03) and runs[1] != runs[0]


@pytest.mark.parametrize("dtype", HALVES)
def test_inference_in_mixed_precision(dtype) -> None:
    model, item = tiny_model().eval(), image_input(queries=2)
    with torch.no_grad():
        full = model([item])[0]
        with autocast(dtype):
            half = model([item])[0]
    for output in (full, half):
        for feats in (output["query_feats"], output["instances"].reid_feats):
            assert feats.dtype == torch.float32
            torch.testing.assert_close(feats.norm(dim=1), torch.ones(len(feats)))
    similar = (full["query_feats"] * half["query_feats"]).sum(dim=1)
    assert (similar > 0.999).all() and len(half["instances"]) > 0


def test_dynamic_convolution_stays_in_range() -> None:
    """Inputs of a size that float16 holds, with a product that it does not."""
    torch.manual_seed(0)
    layer = DynamicConvolution(dim=32, num_cells=9, hidden=4, out=4)
    windows, tokens = torch.randn(6, 9, 32) * 300, torch.randn(6, 32) * 100
    kernel = layer.kernels(tokens)[:, : 32 * 4].view(6, 32, 4)
    assert not torch.bmm(windows.half(), kernel.half()).isfinite().all()
    expected = layer(windows, tokens)
    for dtype in HALVES:
        with autocast(dtype):
            found = layer(windows, tokens)
            from_half = layer(windows.to(dtype), tokens.to(dtype))
        assert found.dtype == dtype and from_half.isfinite().all()
        # only the layer that joins the cells is rounded
        torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("dtype", HALVES)
def test_pooling_does_not_round_boxes(dtype) -> None:
    """In bfloat16 the box at 1000 pixels would be moved by up to two pixels."""
    head = tiny_model().head
    corner = torch.tensor([1001.3, 1002.7])
    boxes = torch.cat([corner, corner + torch.tensor([41.0, 83.0])]).view(1, 1, 4)
    ramp = torch.arange(280).view(1, 1, 1, 280).expand(1, 16, 280, 280) / 280
    full = {"p2": ramp, "p3": ramp[..., ::2, ::2]}
    half = {name: value.to(dtype) for name, value in full.items()}
    expected, found = head.pool(full, boxes), head.pool(half, boxes)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALVES)
def test_maps_of_lower_precision_are_converted_once(dtype, monkeypatch) -> None:
    """Not once in each step; the result is that of converting them in each step."""
    model = tiny_model(STEPS=4).eval()
    process = model.reverse_process()
    features = model.backbone(torch.rand(1, 3, 48, 64))
    features = {name: value.detach().to(dtype) for name, value in features.items()}
    converted, pool = [], model.head.pool

    def counted(features, boxes, dtype=None):
        converted.extend(f.dtype for f in features.values() if f.dtype != torch.float32)
        return pool(features, boxes, dtype)

    with torch.no_grad(), autocast(dtype):
        expected = model.head.pool(features, torch.tensor([[[2.0, 3.0, 30.0, 40.0]]]))
        monkeypatch.setattr(model.head, "pool", counted)
        steps = list(process.steps(features, [(48, 64)], [0]))
    assert len(steps) == 4 and converted == [] and expected.dtype == dtype


# ---- gradient accumulation -------------------------------------------------------------------
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("persons", [(3, 1, 0, 2), (0, 0, 2, 1), (1, 0, 0, 0), (0, 0, 0, 0)])
def test_parts_of_a_batch_equal_the_whole(parts, persons) -> None:
    """Also where a part has no persons: its loss is not divided by 1."""
    batch = [training_input(n, seed=i) for i, n in enumerate(persons)]
    found = []
    for count in (1, parts):
        model = with_fixed_noise(range(4))
        trainer = StepTrainer(model, [batch], torch.optim.SGD(model.parameters(), 0.1), parts=count)
        model.eval().training = True  # batch norm in eval mode; the trainer has set it to training
        trainer.iter = 0
        with EventStorage() as storage:
            trainer.run_step()
        grads = [
            torch.cat([p.grad.flatten() for p in part.parameters()])
            for part in (model.head, model.backbone)
        ]
        found.append((storage.latest(), grads))
    (whole, whole_grads), (split, split_grads) = found
    for name in ("loss_cls", "loss_l1", "loss_giou", "loss_reid", "total_loss"):
        assert split[name][0] == pytest.approx(whole[name][0], rel=1e-5, abs=1e-7), name
    # Not closer: a ReLU at zero depends on the order of a sum.
    for ours, theirs, tolerance in zip(split_grads, whole_grads, (2e-3, 1e-2), strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()


# ---- several processes -----------------------------------------------------------------------
def test_two_processes_equal_one_with_the_joint_batch() -> None:
    run_in_two_processes(compare_with_joint_batch)


# ---- frames ----------------------------------------------------------------------------------
def test_boxes_are_relative_to_their_own_image_whatever_else_is_in_the_batch() -> None:
    model = tiny_model(NUM_PROPOSALS=2)
    alone = training_input(2)
    size = alone["instances"].image_size
    norm = boxes_to_norm(alone["instances"].gt_boxes.tensor, size)
    torch.testing.assert_close(norm_to_boxes(norm, size), alone["instances"].gt_boxes.tensor)
    larger = training_input(2, size=(96, 128), seed=1)
    t = torch.tensor([700])
    torch.manual_seed(2)
    first = model.noisy_proposals([alone["instances"]], t)
    torch.manual_seed(2)
    both = model.noisy_proposals([alone["instances"], larger["instances"]], t.expand(2))
    torch.testing.assert_close(both[0][:1], first[0])
    torch.testing.assert_close(both[1][:1], first[1])
    assert both[1].shape == (2, 2, EMBED_DIM)


def test_boxes_and_embeddings_share_the_time_and_not_the_noise() -> None:
    """At t = 999 nothing but noise is left, at t = 0 nothing but signal."""
    model = tiny_model(NUM_PROPOSALS=2)
    target = training_input(2)["instances"]
    _, clean = model.noisy_proposals([target], torch.tensor([0]))
    _, noise = model.noisy_proposals([target], torch.tensor([999]))
    truth = target.gt_reid_feats * model.codec.reid_length(EMBED_DIM)
    assert (clean[0] - truth).abs().max() < 0.1
    assert torch.nn.functional.cosine_similarity(noise[0], truth).abs().max() < 0.9
    (a, b), (c, d) = (model.noisy_proposals([target], torch.tensor([500])) for _ in range(2))
    assert not torch.equal(a, c) and not torch.equal(b, d)


def test_true_boxes_get_no_noise_and_their_embeddings_do() -> None:
    model = tiny_model(NUM_PROPOSALS=2, TRUE_BOXES=0.5)
    target = training_input(2)["instances"]
    boxes, reid = model.noisy_proposals([target] * 40, torch.full((40,), 700))
    true = (boxes - target.gt_boxes.tensor).abs().amax(dim=(1, 2)) < 1e-3
    assert 10 < true.sum() < 30
    clean = target.gt_reid_feats * model.codec.reid_length(EMBED_DIM)
    assert (reid - clean).abs().amax(dim=(1, 2)).min() > 0.5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_unrolled_proposals_are_those_of_a_sampling_step(eta) -> None:
    """The layer answers with constants, so that the step can be computed by hand."""
    model = tiny_model(NUM_PROPOSALS=2, UNROLL=1.0, TRUE_BOXES=0.5, ETA=eta, SNR_REID=100.0)
    targets = [training_input(2)["instances"]] * 8
    features = model.backbone(torch.zeros(1, 3, 64, 64))
    answer = HeadOutput(
        boxes=torch.tensor([[[8.0, 8.0, 24.0, 56.0]] * 2] * 8),
        logits=torch.zeros(8, 2),
        reid_feats=F.normalize(torch.randn(8, 2, EMBED_DIM), dim=-1),
    )
    seen = []
    model.head.denoise = lambda roi, boxes, reid, t: seen.append((boxes, reid, t)) or answer
    t = torch.tensor([0, 1, 100, 300, 500, 700, 900, 999])
    boxes, reid, times = model._train_inputs(features, targets, t)
    ((boxes_before, reid_before, noisier),) = seen
    assert torch.equal(times, t) and (noisier >= t).all() and (noisier <= 999).all()
    assert len(noisier.unique()) > 4 and noisier[-1] == 999
    ab = cosine_alphas_cumprod()
    assert reid_before.abs().max() < 6  # noise without the teacher's embedding of length 100
    kept = [torch.equal(a, b) for a, b in zip(boxes, boxes_before, strict=True)]
    assert 0 < sum(kept[:-1]) < 7  # given boxes stay
    fresh = []
    for i in range(8):
        start = model.codec.encode_reid(answer.reid_feats[i])
        now, then = ab[-1], ab[t[i]]  # the embedding starts from pure noise
        std = eta * math.sqrt((1 - then) / (1 - now) * max(0.0, 1 - now / then))
        noise = (reid_before[i] - now.sqrt() * start) / (1 - now).sqrt()
        mean = then.sqrt() * start + math.sqrt(max(0.0, 1 - then - std**2)) * noise
        if eta == 0:
            torch.testing.assert_close(reid[i], mean, atol=1e-4, rtol=1e-4)
        elif std > 0:
            fresh.append((reid[i] - mean) / std)
    if eta == 1:  # standard normal noise
        assert len(fresh) > 5 and torch.stack(fresh).std() == pytest.approx(1.0, abs=0.2)
    if eta == 0:  # at t = 0, the predicted box
        for i in range(2):
            expected = boxes_before[i] if kept[i] else answer.boxes[i]
            torch.testing.assert_close(boxes[i], expected, atol=1.5, rtol=0)


def test_unrolled_training_has_gradients_of_one_prediction() -> None:
    model = tiny_model(UNROLL=1.0)
    calls = []
    denoise = model.head.denoise
    model.head.denoise = lambda *args: calls.append(torch.is_grad_enabled()) or denoise(*args)
    losses = model([training_input(2), training_input(0)])
    assert calls == [False, True] and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.head.parameters() if p.requires_grad)
