# SPDX-License-Identifier: Apache-2.0
"""The training loader: same samples for any number of workers, from any step."""

import random
from itertools import islice
from typing import Any

import pytest
import torch

from person_search.data import build_mapper
from person_search.data.samplers import ResumableBatchSampler
from person_search.engine.train_loader import MAX_TRIES, SeededMapDataset, build_train_loader


def batches(cfg, steps: int, start: int = 0) -> list[list[dict[str, Any]]]:
    loader = build_train_loader(cfg, build_mapper(cfg, True))
    loader.batch_sampler.start_step = start
    return list(islice(loader, steps))


def assert_same(first, second) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert [x["image_id"] for x in a] == [x["image_id"] for x in b]
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x["image"], y["image"])
            assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
            assert torch.equal(x["instances"].gt_pids, y["instances"].gt_pids)


def test_same_samples_for_any_number_of_workers(make_cfg) -> None:
    plain = batches(make_cfg(), 6)
    assert_same(plain, batches(make_cfg("out", "DATALOADER.NUM_WORKERS", 2), 6))
    assert len({x["image"].shape for batch in plain for x in batch}) > 1  # it does augment


def test_starts_at_any_step(make_cfg) -> None:
    cfg = make_cfg("out", "DATALOADER.ASPECT_RATIO_GROUPING", True)
    assert_same(batches(cfg, 6)[4:], batches(cfg, 2, start=4))


def test_the_same_image_is_augmented_anew_each_epoch(make_cfg) -> None:
    cfg = make_cfg("out", "SOLVER.IMS_PER_BATCH", 6)
    epochs = batches(cfg, 8)
    of_first = [x["image"] for epoch in epochs for x in epoch if x["image_id"] == 0]
    assert len({(image.shape, image.float().sum().item()) for image in of_first}) > 2


def test_reading_leaves_the_global_generators_alone(make_cfg) -> None:
    before = torch.get_rng_state(), random.getstate()
    batches(make_cfg(), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_other_samplers_are_detectron2s(make_cfg, caplog) -> None:
    cfg = make_cfg("out", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    loader = build_train_loader(cfg, build_mapper(cfg, True))
    assert len(next(iter(loader))) == 2
    assert "will not continue its order" in caplog.text


def skipping(bad: set[int], record: dict) -> dict | None:
    return None if record["id"] in bad else {**record, "draw": random.random()}


def seeded_dataset(bad: set[int]) -> SeededMapDataset:
    records = [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)]
    sampler = ResumableBatchSampler(4, 1, seed=0, rank=0, world_size=1)
    return SeededMapDataset(records, lambda record: skipping(bad, record), sampler)


def test_a_skipped_record_is_replaced_repeatably() -> None:
    dataset = seeded_dataset({1})
    assert len(dataset) == 4
    found = [dataset[1, number] for number in range(30)]
    assert {x["id"] for x in found} == {0, 2, 3}
    assert found == [dataset[1, number] for number in range(30)]
    assert dataset[2, 5]["id"] == 2


def test_nothing_but_skipped_records_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match=rf"{MAX_TRIES} records in a row.*ON_BAD_IMAGE"):
        seeded_dataset({0, 1, 2, 3})[0, 0]
