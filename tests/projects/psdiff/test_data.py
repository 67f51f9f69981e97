# SPDX-License-Identifier: Apache-2.0
"""Training data of PSDiff: embeddings stay with their persons."""

import pytest
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from teacher_tiny import count_embeddings, paint_persons, registered

from person_search.schema import UNLABELED_PID
from psdiff.data import PSDiffMapper


def box_numbers(records, index):
    """Numbers of a record's boxes, counted over the whole data set as in the file."""
    before = sum(len(r["annotations"]) for r in records[:index])
    return list(range(before, before + len(records[index]["annotations"])))


def test_rows_stay_together_when_boxes_are_dropped(tmp_path) -> None:
    records = paint_persons(tmp_path, unlabeled=True)
    degenerate = {"category_id": 0, "bbox_mode": BoxMode.XYXY_ABS}
    persons = records[3]["annotations"]  # two labelled persons and one without identity
    persons.insert(1, {**degenerate, "bbox": [20.0, 8.0, 20.0, 40.0], "person_id": 0})
    persons.append({**degenerate, "bbox": [9.0, 30.0, 20.0, 30.0], "person_id": UNLABELED_PID})
    with registered(records):
        mapper = PSDiffMapper(count_embeddings(records, tmp_path), is_train=True)
        found = mapper(records[3])["instances"]
    numbers = box_numbers(records, 3)
    assert found.gt_reid_feats[:, 0].tolist() == [numbers[0], numbers[2], numbers[3]]
    assert found.gt_pids.tolist() == [persons[i]["person_id"] for i in (0, 2, 3)]
    assert found.gt_pids[2] == UNLABELED_PID
    assert (found.gt_boxes.area() > 0).all()


@pytest.mark.parametrize(
    "crop", [("relative", [0.3, 0.4]), ("absolute", (24, 40)), ("absolute_range", (20, 60))]
)
def test_rows_stay_together_under_crops_flips_and_several_scales(persons, crop) -> None:
    """Entry 0 of an embedding says whose it is: from left to right it grows, mirrored it falls."""
    records, cfg = persons
    cfg.INPUT.CROP.ENABLED, (cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE) = True, crop
    cfg.INPUT.MIN_SIZE_TRAIN = (30, 40, 50)
    mapper = PSDiffMapper(cfg, is_train=True)
    seed_all_rng(3)
    sizes, counts, flips = set(), set(), set()
    for draw in range(60):
        index = 3 * (draw % 4)  # three persons
        item = mapper(records[index])
        found, image = item["instances"], item["image"]
        numbers, here = box_numbers(records, index), records[index]["annotations"]
        sizes.add(min(image.shape[1:]))
        counts.add(len(found))
        assert len(found.gt_reid_feats) == len(found.gt_boxes) == len(found.gt_pids)
        for row in range(len(found)):
            number = numbers.index(int(found.gt_reid_feats[row, 0]))
            assert found.gt_pids[row] == here[number]["person_id"]
            flips.add(bool(found.gt_reid_feats[row, 1]))
        if len(found) > 1:  # persons stand from left to right, or the other way round
            lefts = found.gt_boxes.tensor[:, 0]
            mirrored = bool(found.gt_reid_feats[0, 1])
            assert (lefts.diff() < 0).all() if mirrored else (lefts.diff() > 0).all()
    assert sizes == {30, 40, 50} and flips == {False, True} and len(counts) > 1


def test_flips_that_the_teacher_has_not_seen_are_refused(persons) -> None:
    persons[1].INPUT.RANDOM_FLIP = "vertical"
    with pytest.raises(ValueError, match="INPUT.RANDOM_FLIP is 'vertical'"):
        PSDiffMapper(persons[1], is_train=True)
