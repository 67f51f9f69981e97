# SPDX-License-Identifier: Apache-2.0
"""Crops, how they are held in memory and augmented, and batches of identities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_tiny import paint_people, teacher_cfg

from person_search.schema import UNLABELED_PID
from psdiff.teachers.batches import IdentityBatches
from psdiff.teachers.crops import TrainingCrops, augmentations, crop_image, read_crops


def test_crop_of_a_plain_box_has_its_color():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[1, 10:30, 20:40] = 200
    crops = crop_image(image, [[20, 10, 40, 30], [-50, -50, 5, 5], [58.9, 39.9, 90, 90]], (8, 4))
    assert crops.shape == (3, 3, 8, 4)
    assert (crops[0, 1] == 200).all() and (crops[0, [0, 2]] == 0).all()
    assert (crops[1:] == 0).all()


def test_no_boxes_give_no_crops():
    assert crop_image(torch.zeros(3, 9, 9, dtype=torch.uint8), [], (8, 4)).shape == (0, 3, 8, 4)


def test_compressed_crops_are_nearly_the_raw_ones(tmp_path):
    records = paint_people(tmp_path)
    raw, jpeg = (
        read_crops(records, teacher_cfg(tmp_path, CROPS_IN_MEMORY=kind)) for kind in ("raw", "jpeg")
    )
    assert len(raw) == len(jpeg) == 24
    for row in (0, 7, 23):
        assert jpeg[row].dtype == torch.uint8 and jpeg[row].shape == (3, 32, 16)
        assert (raw[row].int() - jpeg[row].int()).abs().max() < 25
    assert not torch.equal(raw[0], raw[1])
    with pytest.raises(ValueError, match="CROPS_IN_MEMORY is 'gif'; allowed: 'raw', 'jpeg'"):
        read_crops(records, teacher_cfg(tmp_path, CROPS_IN_MEMORY="gif"))


def test_augmentation_depends_on_the_sample_number_alone(tmp_path):
    cfg = teacher_cfg(tmp_path, COLOR_JITTER=[0.2, 0.1])
    crops = torch.randint(0, 256, (2, 3, 32, 16), dtype=torch.uint8)
    data = TrainingCrops(crops, torch.tensor([4, 5]), augmentations(cfg), seed=3)
    torch.manual_seed(8)
    untouched = torch.get_rng_state()
    first, pid, row = data[1, 70]
    assert (pid, row) == (5, 1) and first.shape == (3, 32, 16)
    assert torch.equal(torch.get_rng_state(), untouched)
    torch.manual_seed(9)
    assert torch.equal(first, data[1, 70][0])
    assert not torch.equal(first, data[1, 71][0])


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
    with pytest.raises(ValueError, match="at least two labelled identities"):
        IdentityBatches(torch.zeros(3), 2, 2)
    with pytest.raises(ValueError, match="CROPS_PER_ID is 1.*at least 2"):
        IdentityBatches(torch.arange(3), 2, 1)
    with pytest.raises(ValueError, match="IDS_PER_BATCH is 1.*at least 2"):
        IdentityBatches(torch.arange(3), 1, 2)
