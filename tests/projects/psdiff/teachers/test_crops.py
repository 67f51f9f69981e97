# SPDX-License-Identifier: Apache-2.0
"""Person crops: how they are cut, kept in memory and augmented."""

from pathlib import Path

import pytest
import torch
from teacher_tiny import paint_persons, teacher_cfg

from person_search.data import BadImageError
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
    records = paint_persons(tmp_path)
    (raw, pids), (jpeg, _) = (
        read_crops(records, teacher_cfg(tmp_path, CROPS_IN_MEMORY=kind)) for kind in ("raw", "jpeg")
    )
    assert pids.tolist() == [a["person_id"] for r in records for a in r["annotations"]]
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


@pytest.fixture
def damaged(tmp_path):
    """Records whose second image is truncated."""
    records = paint_persons(tmp_path)
    path = Path(records[1]["file_name"])
    path.write_bytes(path.read_bytes()[:-200])
    return records


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(damaged, tmp_path, workers):
    cfg = teacher_cfg(tmp_path)
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(BadImageError, match="s1.png.*ON_BAD_IMAGE to 'skip'"):
        read_crops(damaged, cfg)


def test_an_unreadable_image_is_skipped(damaged, tmp_path, caplog):
    cfg = teacher_cfg(tmp_path)
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    crops, pids = read_crops(damaged, cfg)
    whole = [a["person_id"] for i, r in enumerate(damaged) if i != 1 for a in r["annotations"]]
    assert pids.tolist() == whole and len(crops) == 22
    assert "skipping the unreadable image" in caplog.text and "s1.png" in caplog.text
