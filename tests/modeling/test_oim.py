# SPDX-License-Identifier: Apache-2.0
"""OIM loss: values by hand, update against a plain loop, AMP, resuming, two processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oim_processes import STEPS, train_alone, train_together
from two_processes import run_in_two_processes

from person_search.modeling import OIMLoss


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def update_one_by_one(lut, cq, head, feats, pids, momentum):
    """The update as the papers state it: one person after the other."""
    lut, cq = lut.clone(), cq.clone()
    for x, pid in zip(feats, pids.tolist(), strict=True):
        if pid >= 0:
            lut[pid] = F.normalize(momentum * lut[pid] + (1 - momentum) * x, dim=0)
        elif len(cq):
            cq[head] = x
            head = (head + 1) % len(cq)
    return lut, cq, head


def test_loss_and_gradient_by_hand():
    oim = OIMLoss(2, 2, queue_size=1, scale=2.0).eval()
    oim.lut.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    oim.cq.copy_(torch.tensor([[-1.0, 0.0]]))
    x = torch.tensor([[0.6, 0.8], [1.0, 0.0]], requires_grad=True)
    loss = oim(x, torch.tensor([1, -1]))
    # logits 2 * (0.6, 0.8, -0.6); the second person is unlabeled and has no loss
    e = [math.exp(2 * v) for v in (0.6, 0.8, -0.6)]
    assert loss.item() == pytest.approx(-math.log(e[1] / sum(e)), abs=1e-6)
    loss.backward()
    p = [v / sum(e) for v in e]
    expected = [2 * (p[0] - p[2]), 2 * (p[1] - 1)]
    torch.testing.assert_close(x.grad, torch.tensor([expected, [0.0, 0.0]]), atol=1e-6, rtol=0)


def test_memory_after_two_of_one_identity_and_one_unlabeled():
    oim = OIMLoss(3, 2, queue_size=2, momentum=0.5)
    x = unit([1, 0], [0, 1], [0.6, 0.8])
    oim(x, torch.tensor([1, 1, -1]))
    # first unit(0 + (1, 0) / 2) = (1, 0), then unit((1, 0) / 2 + (0, 1) / 2)
    expected = torch.tensor([[0, 0], [1, 1], [0, 0]]) / math.sqrt(2)
    torch.testing.assert_close(oim.lut, expected)
    torch.testing.assert_close(oim.cq, torch.tensor([[0.6, 0.8], [0, 0]]))
    assert oim.cq_head == 1


@given(
    pids=st.lists(st.integers(-1, 3), max_size=20),
    queue_size=st.integers(0, 5),
    head=st.integers(0, 4),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_update_equals_one_person_after_the_other(pids, queue_size, head, momentum):
    oim = OIMLoss(4, 3, queue_size, momentum)
    oim.lut.normal_()
    oim.cq.normal_()
    oim.cq_head.fill_(head % max(queue_size, 1))
    feats, pids = F.normalize(torch.randn(len(pids), 3), dim=1), torch.tensor(pids).long()
    expected = update_one_by_one(oim.lut, oim.cq, int(oim.cq_head), feats, pids, momentum)
    oim(feats, pids)
    torch.testing.assert_close(oim.lut, expected[0])
    torch.testing.assert_close(oim.cq, expected[1])
    assert int(oim.cq_head) == expected[2]


@pytest.mark.parametrize("pids", [[], [-1, -1]])
def test_without_labeled_person_the_loss_is_zero_and_differentiable(pids):
    oim = OIMLoss(3, 4, queue_size=3)
    weight = torch.ones(4, requires_grad=True)
    loss = oim(F.normalize(torch.rand(len(pids), 4), dim=1) * weight, torch.tensor(pids).long())
    loss.backward()
    assert loss.item() == 0 and (weight.grad == 0).all()
    assert oim.cq_head == len(pids)


def test_gradient_does_not_see_the_update():
    """The memory changes before backward; the gradient must be that of the memory as it was."""
    feats, pids = F.normalize(torch.randn(6, 4), dim=1), torch.tensor([0, 0, 1, -1, 2, 1])
    grads = []
    for training in (True, False):
        torch.manual_seed(1)
        oim = OIMLoss(3, 4, queue_size=2)
        oim.lut.normal_()
        x = feats.clone().requires_grad_()
        oim.train(training)(x, pids).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, atol=0, rtol=0)


def test_eval_mode_keeps_the_memory():
    oim = OIMLoss(3, 4, queue_size=2).eval()
    oim(F.normalize(torch.randn(2, 4), dim=1), torch.tensor([0, -1]))
    assert not oim.lut.any() and not oim.cq.any()


def test_float32_inside_autocast_and_nothing_infinite_remembered():
    torch.manual_seed(0)
    oim, reference = OIMLoss(3, 4, queue_size=2), OIMLoss(3, 4, queue_size=2)
    x = F.normalize(torch.randn(3, 4), dim=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = oim(x, torch.tensor([0, 1, -1]))
    assert loss.dtype == oim.lut.dtype == torch.float32
    torch.testing.assert_close(loss, reference(x.float(), torch.tensor([0, 1, -1])))

    before = {name: buffer.clone() for name, buffer in oim.named_buffers()}
    broken = torch.tensor([[float("nan")] * 4, [float("inf"), 0, 0, 0]])
    oim(broken, torch.tensor([0, -1]))
    for name, buffer in oim.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_saved_and_resumed_whole():
    feats, pids = F.normalize(torch.randn(5, 4), dim=1), torch.tensor([0, -1, -1, -1, 2])
    oim = OIMLoss(3, 4, queue_size=2)
    oim(feats, pids)
    resumed = OIMLoss(3, 4, queue_size=2)
    resumed.load_state_dict(oim.state_dict())
    assert set(oim.state_dict()) == {"lut", "cq", "cq_head"}
    assert oim(feats, pids) == resumed(feats, pids)
    for a, b in zip(oim.buffers(), resumed.buffers(), strict=True):
        assert torch.equal(a, b)


def test_weights_of_another_number_of_identities_are_refused_by_name():
    with pytest.raises(RuntimeError, match=r"lut of the weights has 483 x 4.*5532 x 4.*NUM_PIDS"):
        OIMLoss(5532, 4, 2).load_state_dict(OIMLoss(483, 4, 2).state_dict())
    with pytest.raises(RuntimeError, match=r"cq of the weights has 3 x 4.*queue size"):
        OIMLoss(5, 4, 2).load_state_dict(OIMLoss(5, 4, 3).state_dict())


def test_unknown_identities_and_settings_are_refused():
    oim = OIMLoss(3, 4, queue_size=2)
    for pid in (3, -2, 5554):
        with pytest.raises(ValueError, match=rf"\[{pid}\].*3 rows \(MODEL.REID.NUM_PIDS\)"):
            oim(torch.zeros(1, 4), torch.tensor([pid]))
    with pytest.raises(ValueError, match="MODEL.REID.NUM_PIDS"):
        OIMLoss(0, 4, 2)


def test_two_processes_equal_one_with_both_batches(tmp_path):
    """Loss, gradients, look-up table and queue, step by step."""
    run_in_two_processes(train_together, str(tmp_path))
    expected = train_alone()
    first, second = (torch.load(tmp_path / f"record{rank}.pt") for rank in range(2))
    close = {"atol": 1e-6, "rtol": 1e-5}
    for step in range(len(STEPS)):
        mean = (first["loss"][step] + second["loss"][step]) / 2
        torch.testing.assert_close(mean, expected["loss"][step], **close)
        for record in (first, second):
            for name in ("grad", "lut", "cq", "cq_head"):
                torch.testing.assert_close(record[name][step], expected[name][step], **close)
