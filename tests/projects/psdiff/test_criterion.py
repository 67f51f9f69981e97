# SPDX-License-Identifier: Apache-2.0
"""Losses of PSDiff, compared with hand-computed cases and a literal reference."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import generalized_box_iou

from psdiff.criterion import PSDiffCriterion, reid_distance
from psdiff.head import HeadOutput
from psdiff.matcher import LossWeights, ProposalMatcher


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


def test_a_batch_without_ground_truth_has_a_loss_of_the_usual_size():
    """The focal losses of all proposals are averaged, not summed."""
    target = Instances((50, 50), gt_boxes=Boxes(torch.zeros(0, 4)), gt_reid_feats=torch.zeros(0, 2))
    logits = torch.full((3, 100), -math.log(99))  # an untrained class branch: score 0.01
    output = HeadOutput(torch.rand(3, 100, 4), logits, torch.randn(3, 100, 2))
    criterion = PSDiffCriterion(ProposalMatcher("dynamic_k", LossWeights()), LossWeights())
    loss = criterion(output, [target] * 3)["loss_cls"].item()
    assert loss == pytest.approx(2.0 * 0.75 * 0.01**2 * -math.log(0.99), rel=1e-4)
