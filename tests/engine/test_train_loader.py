# SPDX-License-Identifier: Apache-2.0
"""The training loader: same samples for any number of workers, from any step."""

import logging
import os
import random
import shutil
import signal
import time
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from person_search.data import build_mapper
from person_search.data.samplers import ResumableBatchSampler
from person_search.engine.train_loader import MAX_TRIES, SeededMapDataset, build_train_loader
from person_search.engine.train_step import StepTrainer


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


def test_augmentation_differs_between_epochs(make_cfg) -> None:
    cfg = make_cfg("out", "SOLVER.IMS_PER_BATCH", 6)
    epochs = batches(cfg, 8)
    of_first = [x["image"] for epoch in epochs for x in epoch if x["image_id"] == 0]
    assert len({(image.shape, image.float().sum().item()) for image in of_first}) > 2


def test_reading_does_not_change_the_global_generators(make_cfg) -> None:
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


# ---- shared memory and time-out ----------------------------------------------------------------
def with_shared_memory(monkeypatch, total: float, free: float) -> None:
    """Sets the size of the shared memory in MB."""
    usage = type("usage", (), {"total": total * 1e6, "free": free * 1e6})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)


def loader_cfg(make_cfg):
    cfg = make_cfg().clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 8, 4
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (700, 900), 1500
    return cfg


def test_small_shared_memory_is_refused_with_the_remedies(make_cfg, monkeypatch, caplog) -> None:
    """4 workers x 2 batches x 8 images x 3 x 900 x 1500 bytes are 259 MB."""
    cfg = loader_cfg(make_cfg)
    with_shared_memory(monkeypatch, 64, 64)
    with pytest.raises(ValueError) as error:
        build_train_loader(cfg, build_mapper(cfg, True))
    text = str(error.value)
    assert "has 64 MB free of 64 MB, but the training may need 259 MB" in text
    assert "NUM_WORKERS 4, times 2 batches" in text and "8 images" in text and "900 x 1500" in text
    assert "--shm-size" in text and "smaller DATALOADER.NUM_WORKERS" in text
    with_shared_memory(monkeypatch, 300, 300)
    build_train_loader(cfg, build_mapper(cfg, True))
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    with_shared_memory(monkeypatch, 300, 100)  # others use it now, perhaps not later
    build_train_loader(cfg, build_mapper(cfg, True))
    assert "has 100 MB free of 300 MB" in caplog.text
    cfg.DATALOADER.NUM_WORKERS = 0
    with_shared_memory(monkeypatch, 1, 1)
    build_train_loader(cfg, build_mapper(cfg, True))


def test_time_out_names_cause_and_remedy(make_cfg, tmp_path) -> None:
    cfg = make_cfg("out", "DATALOADER.NUM_WORKERS", 1, "DATALOADER.TIMEOUT", 1)
    released = tmp_path / "released"

    def never(record):  # ends with the test at the latest
        while not released.exists():
            time.sleep(0.01)

    step = StepTrainer(nn.Linear(1, 1), build_train_loader(cfg, never), None)
    try:
        with pytest.raises(TimeoutError, match=r"timed out after 1 seconds.*DATALOADER.TIMEOUT"):
            step._next_batch()
        with pytest.raises(TimeoutError, match=r"/dev/shm.*NUM_WORKERS.*--shm-size"):
            step._next_batch()
    finally:
        released.touch()


def test_killed_worker_names_cause_and_remedy(make_cfg) -> None:
    cfg = make_cfg("out", "DATALOADER.NUM_WORKERS", 1)
    kill = lambda record: os.kill(os.getpid(), signal.SIGBUS)  # noqa: E731
    step = StepTrainer(nn.Linear(1, 1), build_train_loader(cfg, kill), None)
    with pytest.raises(OSError, match="A worker process of the data loader died. .*--shm-size"):
        step._next_batch()
