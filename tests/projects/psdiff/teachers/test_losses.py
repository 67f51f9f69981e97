# SPDX-License-Identifier: Apache-2.0
"""Losses of the teachers by hand, and against slow literal versions in loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from person_search.schema import UNLABELED_PID
from psdiff.teachers.losses import (
    CenterLoss,
    batch_hard_triplet,
    pairwise_distance,
    softmax_triplet,
    weighted_triplet,
)
from psdiff.teachers.memory import HybridMemory, UnlabeledInstances, UnlabeledQueue

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
"""Four crops on a line, the first two of one person: distances 1, 3, 7, 2, 6, 4."""
PIDS = torch.tensor([0, 0, 1, 1])


def positives_and_negatives(feats, pids, anchor):
    distance = [math.dist(feats[anchor].tolist(), other.tolist()) for other in feats]
    others = [j for j in range(len(pids)) if j != anchor]
    same = [distance[j] for j in others if pids[j] == pids[anchor]]
    return same, [distance[j] for j in others if pids[j] != pids[anchor]]


def slow_triplet(feats, pids, rule):
    """Mean of ``rule(positive distances, negative distances)`` over crops that have both."""
    values = []
    for anchor in range(len(pids)):
        same, other = positives_and_negatives(feats, pids, anchor)
        if same and other:
            values.append(rule(same, other))
    return sum(values) / len(values)


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def weighted(same, other):
    far = sum(w * d for w, d in zip(softmax(same), same, strict=True))
    near = sum(w * d for w, d in zip(softmax([-d for d in other]), other, strict=True))
    return math.log(1 + math.exp(far - near))


def test_distances_are_euclidean_and_have_a_gradient_where_they_are_zero():
    feats = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    distance = pairwise_distance(feats)
    torch.testing.assert_close(distance[0], torch.tensor([0.0, 5.0, 0.0]), atol=1e-5, rtol=0)
    distance.sum().backward()
    assert torch.isfinite(feats.grad).all()


def test_batch_hard_triplet_by_hand():
    # positives 1 1 4 4, nearest negatives 3 2 2 6; margin 1: 0 0 3 0
    assert batch_hard_triplet(LINE, PIDS, 1.0).item() == pytest.approx(3 / 4, rel=1e-5)
    # margin 1.5: 0 0.5 3.5 0
    assert batch_hard_triplet(LINE, PIDS, 1.5).item() == pytest.approx(1.0, rel=1e-5)


def test_softmax_triplet_by_hand():
    expected = sum(math.log(1 + math.exp(x)) for x in (1 - 3, 1 - 2, 4 - 2, 4 - 6)) / 4
    assert softmax_triplet(LINE, PIDS).item() == pytest.approx(expected, rel=1e-5)


def test_weighted_triplet_by_hand():
    # first crop: one positive at 1; negatives at 3 and 7, of which e^-3 : e^-7 is the weight
    near = (3 * math.exp(-3) + 7 * math.exp(-7)) / (math.exp(-3) + math.exp(-7))
    three = torch.tensor([0, 0, 1, 2])
    second = (2 * math.exp(-2) + 6 * math.exp(-6)) / (math.exp(-2) + math.exp(-6))
    expected = (math.log(1 + math.exp(1 - near)) + math.log(1 + math.exp(1 - second))) / 2
    assert weighted_triplet(LINE, three).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_triplets_agree_with_loops(seed):
    g = torch.Generator().manual_seed(seed)
    feats = torch.randn(14, 5, generator=g)
    pids = torch.randint(0, 5, (14,), generator=g)  # some identities have one crop only
    for fast, rule in (
        (batch_hard_triplet(feats, pids, 0.3), lambda s, o: max(0.0, max(s) - min(o) + 0.3)),
        (softmax_triplet(feats, pids), lambda s, o: math.log(1 + math.exp(max(s) - min(o)))),
        (weighted_triplet(feats, pids), weighted),
    ):
        assert fast.item() == pytest.approx(slow_triplet(feats, pids, rule), rel=1e-4)


@pytest.mark.parametrize("pids", [torch.arange(4), torch.zeros(4, dtype=torch.int64)])
def test_without_pairs_triplets_are_zero_and_keep_their_graph(pids):
    feats = LINE.clone().requires_grad_()
    for loss in (
        batch_hard_triplet(feats, pids, 0.3),
        softmax_triplet(feats, pids),
        weighted_triplet(feats, pids),
    ):
        assert loss.item() == 0.0
        loss.backward()
    assert (feats.grad == 0).all()


def test_center_loss_by_hand():
    center = CenterLoss(num_pids=3, dim=2)
    center.centers.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [5.0, 5.0]]))
    feats = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    loss = center(feats, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx(0.5 * (4 + 4 + 16) / 3)
    # rate 0.5, divided by 1 + number of crops: (2, 2) / 3 * 0.5, (0, 4) / 2 * 0.5, not at all
    expected = torch.tensor([[1 + 1 / 3, 1 / 3], [0.0, 1.0], [5.0, 5.0]])
    torch.testing.assert_close(center.centers, expected)
    center.eval()(feats, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(center.centers, expected)


def test_label_smoothing_is_that_of_the_strong_baseline():
    """1 - (I - 1) / I * share for the label, share / I for each other identity."""
    logits, share, label = torch.tensor([[0.3, -1.0, 2.0, 0.5]]), 0.1, 2
    log_p = logits.log_softmax(dim=1)[0].tolist()
    weights = [share / 4] * 4
    weights[label] = 1 - 3 / 4 * share
    expected = -sum(w * p for w, p in zip(weights, log_p, strict=True))
    smoothed = F.cross_entropy(logits, torch.tensor([label]), label_smoothing=share)
    assert smoothed.item() == pytest.approx(expected, rel=1e-5)


# ---- memory of HHCL ------------------------------------------------------------------------------


def slow_memory_loss(feats, targets, banks, temperature):
    """Cross entropy over each (weight, bank), in loops; a target of None does not count."""
    total = 0.0
    known = [i for i, target in enumerate(targets) if target is not None]
    for weight, bank in banks:
        for i in known:
            sims = [float(feats[i] @ entry) / temperature for entry in bank]
            total += weight * (math.log(sum(map(math.exp, sims))) - sims[targets[i]]) / len(known)
    return total


def unit(*rows):
    return F.normalize(torch.tensor(rows), dim=1)


def test_memory_loss_and_update_by_hand():
    memory = HybridMemory(num_pids=2, dim=2, temperature=1.0, momentum=0.5)
    memory.centroids.copy_(torch.eye(2))
    memory.hard_instances.copy_(torch.eye(2))
    feats = torch.tensor([[1.0, 0.0], [0.6, 0.8]], requires_grad=True)
    loss = memory(feats, torch.tensor([0, 0]), torch.tensor([0, 1]))
    expected = 0.0
    for sim in ([1.0, 0.0], [0.6, 0.8]):
        expected += (math.log(sum(map(math.exp, sim))) - sim[0]) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # centroid: halfway to the mean (0.8, 0.4); hardest: halfway to (0.6, 0.8)
    torch.testing.assert_close(memory.centroids, unit([0.9, 0.2], [0.0, 1.0]))
    torch.testing.assert_close(memory.hard_instances, unit([0.8, 0.4], [0.0, 1.0]))


def test_the_hardest_crop_differs_most_from_the_hard_instances():
    memory = HybridMemory(num_pids=1, dim=2, momentum=1.0)
    memory.centroids.copy_(unit([1.0, 0.0]))
    memory.hard_instances.copy_(unit([0.0, 1.0]))
    feats = unit([1.0, 0.0], [0.6, 0.8])  # the second is farther from the centroid
    memory(feats, torch.tensor([0, 0]), torch.tensor([0, 1]))
    torch.testing.assert_close(memory.hard_instances, feats[:1])


def test_mix_weighs_hard_instances_against_centroids():
    feats, pids = unit([1.0, 0.2]), torch.tensor([0])
    values = []
    for mix in (0.0, 0.25, 1.0):
        memory = HybridMemory(2, 2, temperature=0.5, mix=mix)
        memory.centroids.copy_(unit([1.0, 0.0], [0.0, 1.0]))
        memory.hard_instances.copy_(unit([1.0, -1.0], [1.0, 1.0]))
        banks = ((1 - mix, memory.centroids), (mix, memory.hard_instances))
        expected = slow_memory_loss(feats, [0], banks, 0.5)
        values.append(memory(feats, pids, torch.tensor([0])).item())
        assert values[-1] == pytest.approx(expected, rel=1e-5)
    assert values[1] == pytest.approx(0.75 * values[0] + 0.25 * values[2], rel=1e-5)


def test_unlabeled_crops_become_negatives_in_a_circular_queue():
    memory = HybridMemory(2, 2, temperature=1.0, unlabeled=UnlabeledQueue(2, 2))
    feats = unit([1.0, 0.1], [0.2, 1.0], [-1.0, 0.3])
    unlabeled = torch.full((3,), UNLABELED_PID)
    assert memory(feats, unlabeled, torch.arange(3)).item() == 0.0
    torch.testing.assert_close(memory.unlabeled.slots, feats[[2, 1]])
    assert memory.unlabeled.head.item() == 1
    banks = [(0.5, torch.cat([bank, feats[[2, 1]]])) for bank in (memory.centroids,) * 2]
    expected = slow_memory_loss(feats[:1], [0], banks, 1.0)
    one = torch.tensor([0])
    assert memory(feats[:1], one, one).item() == pytest.approx(expected, rel=1e-5)


def test_unlabeled_crops_with_entries_of_their_own_are_told_from_all_others():
    pids = torch.tensor([0, UNLABELED_PID, 1, UNLABELED_PID, UNLABELED_PID])
    unlabeled = UnlabeledInstances(pids, 2, momentum=0.5)
    memory = HybridMemory(2, 2, temperature=1.0, unlabeled=unlabeled)
    entries = unit([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0])
    unlabeled.fill(entries)
    rows = torch.tensor([3, 0])  # the second of the unlabelled, and identity 0
    feats = unit([1.0, 1.0], [0.3, -1.0])
    banks = [(0.5, torch.cat([b, entries])) for b in (memory.centroids, memory.hard_instances)]
    expected = slow_memory_loss(feats, [2 + 1, 0], banks, 1.0)
    assert memory(feats, pids[rows], rows).item() == pytest.approx(expected, rel=1e-5)
    halfway = F.normalize(entries[1] + feats[0], dim=0)
    torch.testing.assert_close(unlabeled.slots, torch.stack([entries[0], halfway, entries[2]]))


def test_memory_is_filled_from_all_training_crops():
    pids = torch.tensor([0, 1, 0, UNLABELED_PID])
    memory = HybridMemory(2, 2, unlabeled=UnlabeledInstances(pids, 2, momentum=0.5))
    feats = unit([1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0])
    memory.fill(feats, pids)
    torch.testing.assert_close(memory.centroids, unit([1.6, 0.8], [0.0, 1.0]))
    # both crops of identity 0 lie at the same angle to their mean
    assert any(torch.allclose(memory.hard_instances[0], feats[i]) for i in (0, 2))
    torch.testing.assert_close(memory.hard_instances[1], feats[1])
    torch.testing.assert_close(memory.unlabeled.slots, feats[3:])
