# SPDX-License-Identifier: Apache-2.0
"""Assignment of proposals and the losses, against hand-made cases and literal references."""

import itertools
import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_iou, generalized_box_iou

from psdiff.criterion import PSDiffCriterion, reid_distance
from psdiff.head import HeadOutput
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


def test_unknown_matcher_is_refused():
    with pytest.raises(ValueError, match="MODEL.PSDIFF.MATCHER is 'greedy'"):
        ProposalMatcher("greedy", LossWeights())


def _target(boxes, reid, size=(100, 200)):
    return Instances(size, gt_boxes=Boxes(torch.tensor(boxes)), gt_reid_feats=torch.tensor(reid))


def test_losses_of_a_hand_made_case():
    """Two ground truths, three proposals; one proposal is exact, one is off, one is background."""
    target = _target([[0.0, 0.0, 20.0, 40.0], [100.0, 50.0, 140.0, 90.0]], [[1.0, 0.0], [0.0, 1.0]])
    output = HeadOutput(
        boxes=torch.tensor(
            [[[0.0, 0.0, 20.0, 40.0], [100.0, 50.0, 140.0, 70.0], [60.0, 0.0, 70.0, 10.0]]]
        ),
        logits=torch.zeros(1, 3),
        reid_feats=torch.tensor([[[1.0, 0.0], [0.6, 0.2], [5.0, 5.0]]]),
    )
    weights = LossWeights()
    criterion = PSDiffCriterion(ProposalMatcher("hungarian", LossWeights()), weights)
    losses = criterion(output, [target])
    # Two matched pairs divide everything. Focal at p = 0.5: alpha_t * 0.25 * ln 2.
    focal = (0.25 * 2 + 0.75) * 0.25 * math.log(2)
    assert losses["loss_cls"].item() == pytest.approx(2.0 * focal / 2)
    assert losses["loss_l1"].item() == pytest.approx(5.0 * (20 / 100) / 2)
    assert losses["loss_giou"].item() == pytest.approx(2.0 * (1 - 0.5) / 2, rel=1e-4)
    assert losses["loss_reid"].item() == pytest.approx(5.0 * 1.0 / 2, rel=1e-4)


def test_an_empty_image_has_only_class_loss_and_finite_gradients():
    output = HeadOutput(
        boxes=torch.rand(1, 4, 4).requires_grad_(),
        logits=torch.zeros(1, 4).requires_grad_(),
        reid_feats=torch.randn(1, 4, 2).requires_grad_(),
    )
    target = Instances((50, 50), gt_boxes=Boxes(torch.zeros(0, 4)), gt_reid_feats=torch.zeros(0, 2))
    criterion = PSDiffCriterion(ProposalMatcher("dynamic_k", LossWeights()), LossWeights())
    losses = criterion(output, [target])
    assert losses["loss_cls"] > 0
    assert losses["loss_l1"] == losses["loss_giou"] == losses["loss_reid"] == 0
    sum(losses.values()).backward()
    assert torch.isfinite(output.logits.grad).all()


def test_distance_is_not_squared_and_smooth_at_zero():
    pred = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    distance = reid_distance(pred, torch.zeros(2, 2))
    assert distance.tolist() == pytest.approx([5.0, 1e-6])
    distance.sum().backward()
    torch.testing.assert_close(pred.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


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


@pytest.mark.parametrize("seed", range(8))
def test_dynamic_k_equals_its_literal_form_where_persons_compete(seed):
    """Few proposals for many persons close together: most have to be given one that is free."""
    logits, boxes, gt = random_case(seed, 4 + seed, 6, size=30)
    cost = pairwise_cost(logits, boxes, gt, torch.tensor([30.0] * 4), LossWeights())
    iou = box_iou(boxes, gt)
    rows, columns = dynamic_k_assign(cost, iou, 3)
    expected = literal_dynamic_k(cost.tolist(), iou.tolist(), 3)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def literal_losses(output, targets, weights, matcher):
    """Eq. 13 and 14 in loops over images and pairs; all sums divided by the number of pairs."""
    sums = dict.fromkeys(("loss_cls", "loss_l1", "loss_giou", "loss_reid"), 0.0)
    count = 0
    for i, target in enumerate(targets):
        h, w = target.image_size
        boxes = target.gt_boxes.tensor
        pairs = list(zip(*matcher(output.logits[i], output.boxes[i], boxes, (h, w)), strict=True))
        count += len(pairs)
        persons = {int(n) for n, _ in pairs}
        for n, logit in enumerate(output.logits[i].tolist()):
            p = 1 / (1 + math.exp(-logit))
            p_t, alpha_t = (p, 0.25) if n in persons else (1 - p, 0.75)
            sums["loss_cls"] += weights.cls * -alpha_t * (1 - p_t) ** 2 * math.log(p_t)
        for n, k in pairs:
            difference = (output.boxes[i, n] - boxes[k]).abs() / torch.tensor([w, h, w, h])
            sums["loss_l1"] += weights.l1 * difference.sum().item()
            giou = generalized_box_iou(output.boxes[i, n][None], boxes[k][None]).item()
            sums["loss_giou"] += weights.giou * (1 - giou)
            distance = torch.dist(output.reid_feats[i, n], target.gt_reid_feats[k]).item()
            sums["loss_reid"] += weights.reid * distance
    return {name: value / max(count, 1) for name, value in sums.items()}


@pytest.mark.parametrize("mode", ["dynamic_k", "hungarian"])
def test_losses_equal_their_literal_form(mode):
    """Images of different sizes and numbers of persons, one without: each in its own frame."""
    g = torch.Generator().manual_seed(4)
    targets, boxes = [], []
    for count, size in ((3, (100, 200)), (0, (50, 80)), (1, (120, 60))):
        h, w = size
        corner = torch.rand(count + 9, 2, generator=g) * 0.5
        box = torch.cat([corner, corner + 0.05 + torch.rand(count + 9, 2, generator=g) * 0.4], 1)
        box = box * torch.tensor([w, h, w, h])
        feats = torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1)
        targets.append(Instances(size, gt_boxes=Boxes(box[:count]), gt_reid_feats=feats))
        boxes.append(box[count:])
    output = HeadOutput(
        boxes=torch.stack(boxes),
        logits=torch.randn(3, 9, generator=g),
        reid_feats=torch.randn(3, 9, 4, generator=g),
    )
    matcher, weights = ProposalMatcher(mode, LossWeights()), LossWeights()
    losses = PSDiffCriterion(matcher, weights)(output, targets)
    expected = literal_losses(output, targets, weights, matcher)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-4)
