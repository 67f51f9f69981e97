# SPDX-License-Identifier: Apache-2.0
"""PPLR: agreement of whole and parts, and the labels that follow from it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_tiny import teacher_cfg
from torch.nn import functional as F

from person_search.schema import UNLABELED_PID
from psdiff.teachers.pplr import (
    cross_agreement,
    nearest_neighbors,
    refine_labels,
    smooth_labels,
)
from psdiff.teachers.registry import build_teacher, build_teacher_loss


def at_degrees(*angles):
    radians = torch.tensor(angles) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_agreement_by_hand():
    # four crops as directions; by the whole 0, 10, 40, 90 degrees, by the part 0, 80, 30, 90
    whole = nearest_neighbors(at_degrees(0, 10, 40, 90), k=2)
    part = nearest_neighbors(5 * at_degrees(0, 80, 30, 90), k=2)  # length does not matter
    assert [set(row) for row in whole.tolist()] == [{1, 2}, {0, 2}, {1, 0}, {2, 1}]
    assert [set(row) for row in part.tolist()] == [{2, 1}, {3, 2}, {0, 1}, {1, 2}]
    # common 2, 1, 2, 2 of unions 2, 3, 2, 2
    torch.testing.assert_close(cross_agreement(whole, part), torch.tensor([1.0, 1 / 3, 1.0, 1.0]))


@settings(max_examples=15)
@given(count=st.integers(2, 12), k=st.integers(1, 5), seed=st.integers(0, 99))
def test_agreement_is_jaccard_of_sets_and_neighbors_leave_the_crop_out(count, k, seed):
    g = torch.Generator().manual_seed(seed)
    first, second = (
        nearest_neighbors(torch.randn(count, 3, generator=g), k, chunk=4) for _ in range(2)
    )
    assert first.shape == (count, min(k, count - 1))
    for i, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        assert i not in a and len(set(a)) == len(a)
        expected = len(set(a) & set(b)) / len(set(a) | set(b))
        assert cross_agreement(first, second)[i].item() == pytest.approx(expected)


def test_neighbors_against_loops():
    feats = torch.randn(9, 4)
    for i, row in enumerate(nearest_neighbors(feats, 3, chunk=2).tolist()):
        others = [j for j in range(9) if j != i]
        others.sort(key=lambda j: -float(F.cosine_similarity(feats[i], feats[j], dim=0)))
        assert row == others[:3]


def test_refined_labels_by_hand():
    labels = torch.tensor([[1.0, 0.0]])
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, math.log(4.0)]]])  # says 3:1 and 1:4
    heavier = math.exp(0.9) / (math.exp(0.9) + math.exp(0.2))
    said = heavier * 0.75 + (1 - heavier) * 0.2
    refined = refine_labels(labels, logits, torch.tensor([[0.9, 0.2]]), weight=0.5)
    expected = torch.tensor([[0.5 + 0.5 * said, 0.5 * (1 - said)]])
    torch.testing.assert_close(refined, expected)


def test_labels_of_parts_are_smoothed_by_disagreement():
    smoothed = smooth_labels(torch.eye(4)[[2, 0]], torch.tensor([0.6, 1.0]))
    torch.testing.assert_close(smoothed, torch.tensor([[0.1, 0.1, 0.7, 0.1], [1.0, 0, 0, 0]]))


def test_agreement_is_computed_over_labelled_crops_before_each_epoch(tmp_path):
    pids = torch.tensor([0, UNLABELED_PID, 0, 1, 1])
    cfg = teacher_cfg(tmp_path, "pplr", NEIGHBORS=2, AGREEMENT_FROM_EPOCH=2, NUM_PARTS=2)
    net = build_teacher(cfg).eval()
    loss = build_teacher_loss(cfg, net, pids, 2).eval()
    crops = torch.randint(0, 256, (5, 3, 32, 16), dtype=torch.uint8)
    asked = []

    def describe(rows):
        asked.append(rows.tolist())
        with torch.no_grad():
            yield net.describe(crops[rows[:3]])
            yield net.describe(crops[rows[3:]])

    loss.start_epoch(1, describe)
    assert not loss.smooths
    loss.start_epoch(2, describe)
    assert asked == [[0, 2, 3, 4]] * 2 and loss.smooths
    rows = torch.tensor([0, 2, 3, 4])
    feats = net.describe(crops[rows])
    whole = nearest_neighbors(feats.whole[0], 2)
    for part in range(2):
        expected = cross_agreement(whole, nearest_neighbors(feats.parts[part], 2))
        torch.testing.assert_close(loss.agreement[rows, part], expected)


@pytest.mark.parametrize("smooths", [False, True])
def test_losses_against_loops(tmp_path, smooths):
    pids = torch.tensor([0, 0, 1, 1, 2, 2])
    cfg = teacher_cfg(tmp_path, "pplr", LABEL_WEIGHT=0.3)
    net = build_teacher(cfg).eval()
    loss = build_teacher_loss(cfg, net, pids, 3).eval()
    loss.agreement.uniform_()
    loss.smooths.fill_(smooths)
    feats = net.describe(torch.randint(0, 256, (6, 3, 32, 16), dtype=torch.uint8))
    out = loss(feats, pids, torch.arange(6))

    features = [*feats.whole, *feats.parts]
    logits = [c(n(x)) for c, n, x in zip(loss.classifiers, loss.necks, features, strict=True)]
    whole, parts = logits[0].log_softmax(1), [x.log_softmax(1) for x in logits[1:]]
    total, per_part = 0.0, 0.0
    for i, pid in enumerate(pids.tolist()):
        agreement = loss.agreement[i]
        weights = agreement.exp() / agreement.exp().sum()
        for person in range(3):
            given_label = float(person == pid)
            said = sum(w * p[i, person].exp() for w, p in zip(weights, parts, strict=True))
            total -= (0.3 * given_label + 0.7 * said) * whole[i, person] / 6
            for s, part in enumerate(parts):
                kept = agreement[s] if smooths else 1.0
                target = kept * given_label + (1 - kept) / 3
                per_part -= target * part[i, person] / 6 / len(parts)
    assert out["loss_id"].item() == pytest.approx(total.item(), rel=1e-4)
    assert out["loss_id_parts"].item() == pytest.approx(per_part.item(), rel=1e-4)
