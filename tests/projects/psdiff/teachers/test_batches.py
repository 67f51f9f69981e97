# SPDX-License-Identifier: Apache-2.0
"""Batches of identities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from person_search.schema import UNLABELED_PID
from psdiff.teachers.batches import IdentityBatches


def test_batches_hold_p_identities_with_k_crops_and_unlabeled_ones():
    pids = torch.tensor([0] * 5 + [1] * 2 + [2] * 7 + [UNLABELED_PID] * 4)
    batches = IdentityBatches(pids, ids_per_batch=2, crops_per_id=4, unlabeled_per_batch=3)
    assert batches.steps_per_epoch() == 2  # 14 labelled crops, 8 in a batch
    stream, numbers = iter(batches), []
    for _ in range(5):
        rows, sample_numbers = zip(*next(stream), strict=True)
        numbers += sample_numbers
        values, counts = pids[list(rows)].unique(return_counts=True)
        assert values[0] == UNLABELED_PID and counts[0] == 3
        assert counts[1:].tolist() == [4, 4]
    assert numbers == list(range(5 * 11))


def test_a_pass_shows_every_identity_once():
    batches = iter(IdentityBatches(torch.arange(12) // 2, ids_per_batch=2, crops_per_id=2))
    for _ in range(3):
        rows = [row for _ in range(3) for row, _ in next(batches)]
        assert sorted({row // 2 for row in rows}) == list(range(6))


@settings(max_examples=20)
@given(start=st.integers(0, 40), seed=st.integers(0, 5))
def test_batches_can_begin_at_any_step(start, seed):
    pids = torch.tensor([0, 0, 1, 1, 2, 2, 3, UNLABELED_PID])
    whole, later = (IdentityBatches(pids, 2, 2, 1, seed) for _ in range(2))
    later.start_step = start
    stream = iter(whole)
    for _ in range(start):
        next(stream)
    again = iter(later)
    assert [next(stream) for _ in range(3)] == [next(again) for _ in range(3)]


def test_batches_refuse_what_no_loss_can_compare():
    with pytest.raises(ValueError, match="at least two labeled identities"):
        IdentityBatches(torch.zeros(3), 2, 2)
    with pytest.raises(ValueError, match="CROPS_PER_ID is 1.*at least 2"):
        IdentityBatches(torch.arange(3), 2, 1)
    with pytest.raises(ValueError, match="IDS_PER_BATCH is 1.*at least 2"):
        IdentityBatches(torch.arange(3), 1, 2)
