# SPDX-License-Identifier: Apache-2.0
"""What tests of PSDiff run in several processes; an importable module."""

from collections.abc import Iterable

import torch
from detectron2.utils import comm
from psdiff_tiny import EMBED_DIM, tiny_model, training_input

from person_search.engine.trainer import wrap_for_processes
from psdiff.criterion import PSDiffCriterion
from psdiff.head import HeadOutput
from psdiff.inference_latency import Calibration, LatencyMeter
from psdiff.inference_settings import InferenceSettings
from psdiff.matcher import LossWeights, ProposalMatcher


def compare_with_joint_batch() -> None:
    """In one of two processes, compares losses and gradients with one process for both images."""
    rank = comm.get_rank()
    for persons in ((3, 1), (0, 2), (1, 0), (0, 0)):
        check_criterion(persons, rank)
    for persons in ((3, 1), (0, 2)):
        check_model(persons, rank)


def check_criterion(persons: tuple[int, int], rank: int) -> None:
    """Gradients at the outputs of the head, one image per process."""
    targets = [training_input(n, seed=i)["instances"] for i, n in enumerate(persons)]
    criterion = PSDiffCriterion(ProposalMatcher("dynamic_k", LossWeights()), LossWeights())
    g = torch.Generator().manual_seed(1)
    corner = torch.rand(2, 8, 2, generator=g) * 30
    boxes = torch.cat([corner, corner + 5 + torch.rand(2, 8, 2, generator=g) * 20], dim=-1)
    logits = torch.randn(2, 8, generator=g)
    reid_feats = torch.randn(2, 8, EMBED_DIM, generator=g)

    def losses(rows: slice) -> tuple[dict, list]:
        parts = [x[rows].clone().requires_grad_() for x in (boxes, logits, reid_feats)]
        found = criterion(HeadOutput(*parts), targets[rows])
        sum(found.values()).backward()
        return {k: v.item() for k, v in found.items()}, [x.grad for x in parts]

    mine, grads = losses(slice(rank, rank + 1))
    everyone = comm.all_gather((mine, grads))
    joint, joint_grads = alone(lambda: losses(slice(0, 2)))
    for name, value in joint.items():
        mean = sum(x[0][name] for x in everyone) / 2
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
    for i, grad in enumerate(joint_grads):
        ours = torch.cat([x[1][i] for x in everyone]) / 2
        torch.testing.assert_close(ours, grad, rtol=1e-5, atol=1e-7)


def check_model(persons: tuple[int, int], rank: int) -> None:
    """Compares the gradients of all weights after the exchange; no process waits forever."""
    inputs = [training_input(n, seed=i) for i, n in enumerate(persons)]
    model, joint = with_fixed_noise([rank]), with_fixed_noise([0, 1])
    wrapped = wrap_for_processes(model)  # has to live until the gradients are exchanged
    sum(wrapped(inputs[rank : rank + 1]).values()).backward()
    alone(lambda: sum(joint(inputs).values()).backward())
    ours, theirs = (torch.cat([p.grad.flatten() for p in x.parameters()]) for x in (model, joint))
    # not closer: a ReLU on the edge falls to either side with the order of a sum
    assert (ours - theirs).norm() < 0.01 * theirs.norm(), persons


def with_fixed_noise(numbers: Iterable[int]):
    """Returns the tiny model with batch norm in eval mode; time and noise depend on the image.

    Args:
        numbers: Numbers of the images in the order in which the model will receive them.
    """
    model = tiny_model().eval()
    model.training = True
    draw, denoise, order = model.noisy_proposals, model.head.denoise, iter(numbers)
    times = torch.zeros(0, dtype=torch.int64)

    def noisy_proposals(targets, t):
        nonlocal times
        drawn, numbers = [], [next(order) for _ in targets]
        times = torch.tensor([100 + 300 * number for number in numbers]) % 1000
        for number, time, target in zip(numbers, times, targets, strict=True):
            torch.manual_seed(50 + number)
            drawn.append(draw([target], time[None]))
        return tuple(torch.cat(x) for x in zip(*drawn, strict=True))

    model.noisy_proposals = noisy_proposals
    model.head.denoise = lambda roi, boxes, reid, t: denoise(roi, boxes, reid, times)
    return model


def alone(run):
    """Calls a function as in a training of one process: counts are not reduced."""
    world_size = comm.get_world_size
    comm.get_world_size = lambda: 1
    try:
        return run()
    finally:
        comm.get_world_size = world_size


def agree_on_steps() -> None:
    """In one of two processes, checks that both take the steps of the slower one."""
    meter, step_ms = LatencyMeter(), 5.0 + 5.0 * comm.get_rank()
    meter.calibrate = lambda model, settings, image_size: Calibration(image_size, 20.0, step_ms)
    settings = InferenceSettings(latency_budget_ms=50.0)
    assert meter.agreed_steps(None, settings, (48, 64)) == 3
