# SPDX-License-Identifier: Apache-2.0
"""Assignment of proposals, compared with literal references and brute force."""

import itertools

import pytest
import torch
from torchvision.ops import box_iou

from psdiff.matcher import (
    LossWeights,
    ProposalMatcher,
    dynamic_k_assign,
    near_ground_truth,
    pairwise_cost,
)


def random_case(seed, num_proposals, num_gt, size=100):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_proposals + num_gt, 2, generator=g) * size * 0.6
    boxes = torch.cat([corner, corner + 5 + torch.rand(len(corner), 2, generator=g) * 35], dim=1)
    return torch.randn(num_proposals, generator=g), boxes[:num_proposals], boxes[num_proposals:]


def literal_dynamic_k(cost, iou, top_ious):
    """The rule of dynamic_k_assign in loops."""
    num_proposals, num_gt = len(cost), len(cost[0])
    wanted_by = {n: [] for n in range(num_proposals)}
    for k in range(num_gt):
        highest = sorted((iou[n][k] for n in range(num_proposals)), reverse=True)[:top_ious]
        count = min(max(int(sum(highest)), 1), num_proposals)
        for n in sorted(range(num_proposals), key=lambda n: cost[n][k])[:count]:
            wanted_by[n].append(k)
    owner = {n: min(ks, key=lambda k: cost[n][k]) for n, ks in wanted_by.items() if ks}
    for k in range(num_gt):
        free = [n for n in range(num_proposals) if n not in owner]
        if k not in owner.values() and free:
            owner[min(free, key=lambda n: cost[n][k])] = k
    return sorted(owner.items())


@pytest.mark.parametrize("seed", range(20))
def test_dynamic_k_equals_its_literal_form(seed):
    logits, boxes, gt = random_case(seed, 3 + seed % 12, 1 + seed % 5)
    cost = pairwise_cost(logits, boxes, gt, torch.tensor([100.0] * 4), LossWeights())
    iou = box_iou(boxes, gt)
    rows, columns = dynamic_k_assign(cost, iou, 5)
    expected = literal_dynamic_k(cost.tolist(), iou.tolist(), 5)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


@pytest.mark.parametrize("seed", range(8))
def test_dynamic_k_equals_its_literal_form_where_persons_compete(seed):
    """Few proposals for many persons close together: most have to be given one that is free."""
    logits, boxes, gt = random_case(seed, 4 + seed, 6, size=30)
    cost = pairwise_cost(logits, boxes, gt, torch.tensor([30.0] * 4), LossWeights())
    iou = box_iou(boxes, gt)
    rows, columns = dynamic_k_assign(cost, iou, 3)
    expected = literal_dynamic_k(cost.tolist(), iou.tolist(), 3)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_equals_brute_force(seed):
    logits, boxes, gt = random_case(seed, 6, 3)
    weights = LossWeights()
    cost = pairwise_cost(logits, boxes, gt, torch.tensor([100.0] * 4), weights)
    rows, columns = ProposalMatcher("hungarian", weights)(logits, boxes, gt, (100, 100))
    best = min(
        sum(cost[p, k].item() for k, p in enumerate(choice))
        for choice in itertools.permutations(range(6), 3)
    )
    assert cost[rows, columns].sum().item() == pytest.approx(best, rel=1e-5)


def test_every_ground_truth_gets_a_proposal_while_there_are_any():
    logits, boxes, gt = random_case(1, 12, 4)
    gt[1:] = gt[0]  # four persons at one place compete for the same proposals
    _, truth = ProposalMatcher("dynamic_k", LossWeights())(logits, boxes, gt, (100, 100))
    assert set(truth.tolist()) == {0, 1, 2, 3}


def test_near_is_inside_or_within_two_and_a_half_sizes():
    gt = torch.tensor([[40.0, 40.0, 50.0, 60.0]])  # centre (45, 50), size (10, 20)
    centers = torch.tensor([[45.0, 50.0], [69.0, 50.0], [71.0, 50.0], [45.0, 99.0], [45.0, 101.0]])
    boxes = torch.cat([centers - 1, centers + 1], dim=1)
    assert near_ground_truth(boxes, gt)[:, 0].tolist() == [True, True, False, True, False]


def test_no_ground_truth_matches_nothing():
    rows, columns = ProposalMatcher("dynamic_k", LossWeights())(
        torch.zeros(3), torch.rand(3, 4), torch.zeros(0, 4), (10, 10)
    )
    assert len(rows) == len(columns) == 0


def test_the_distance_of_embeddings_can_be_part_of_the_cost():
    """Two proposals at one place: the embedding decides which person is whose."""
    boxes = torch.tensor([[0.0, 0.0, 20.0, 40.0]] * 2)
    gt_boxes = boxes + torch.tensor([[0.0], [1.0]])
    reid, gt_reid = torch.eye(2), torch.eye(2).flip(0)
    for weight, expected in ((0.0, None), (5.0, [1, 0])):
        matcher = ProposalMatcher("hungarian", LossWeights(), reid_weight=weight)
        rows, truth = matcher(torch.zeros(2), boxes, gt_boxes, (100, 100), reid, gt_reid)
        assert rows.tolist() == [0, 1]
        assert expected is None or truth.tolist() == expected
    swapped = ProposalMatcher("hungarian", LossWeights(), reid_weight=5.0)(
        torch.zeros(2), boxes, gt_boxes, (100, 100), reid, gt_reid.flip(0)
    )[1]
    assert swapped.tolist() == [0, 1]


def test_unknown_matcher_is_refused():
    with pytest.raises(ValueError, match="MODEL.PSDIFF.MATCHER is 'greedy'"):
        ProposalMatcher("greedy", LossWeights())
