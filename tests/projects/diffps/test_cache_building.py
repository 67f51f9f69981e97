# SPDX-License-Identifier: Apache-2.0
"""The tool that fills caches ahead of a training."""

import argparse
import importlib.util
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_backbone
from diffps_tiny import tiny_backbone_cfg
from PIL import Image

from diffps.cache_building import CacheCounts, fill_cache
from person_search.data import build_mapper

NAMES = ("cache_building_train", "cache_building_test")


@pytest.fixture
def records(tmp_path):
    """Three images, as training and as test set."""
    found = []
    for i in range(3):
        path = tmp_path / f"{i}.png"
        pixels = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        found.append(
            {
                "file_name": str(path),
                "image_id": i,
                "height": 60,
                "width": 80,
                "cam_id": None,
                "annotations": [],
                "queries": [],
            }
        )
    for name in NAMES:
        DatasetCatalog.register(name, lambda: found)
    yield found
    for name in NAMES:
        DatasetCatalog.remove(name)


@pytest.fixture
def cfg(tiny_sd, tmp_path):
    cfg = tiny_backbone_cfg(tiny_sd, CACHE__KIND="latent", CACHE__DIR=str(tmp_path / "cache"))
    cfg.DATALOADER.MAPPER = "DiffPSMapper"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.DIFFPS.INPUT.SIZE = [64, 64]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = NAMES[:1], NAMES[1:]
    return cfg


@pytest.fixture
def tool(repo_root):
    path = repo_root / "projects/DiffPS/tools/build_cache.py"
    spec = importlib.util.spec_from_file_location("build_diffps_cache", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["latent", "feature", "compact"])
def test_training_and_evaluation_find_every_image(cfg, records, tool, capsys, kind):
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.KIND = kind
    assert tool.build_caches(cfg)
    assert "cache_building_train: 6 added, 0 were there" in capsys.readouterr().out
    backbone = build_backbone(cfg)
    for is_train, draws in ((True, 4), (False, 1)):
        mapper = build_mapper(cfg, is_train)
        for record in records * draws:
            item = mapper(record)
            images = ((item["image"] - 127.5) / 127.5)[None]
            backbone(images, [images.shape[2:]], [item["image_digest"]])
    assert (backbone.cache.hits, backbone.cache.misses) == (15, 0)
    assert backbone.cache.count() == 6  # test images are the unflipped ones


def test_an_interrupted_run_goes_on(cfg, records, tool):
    backbone = build_backbone(cfg)
    assert fill_cache(cfg, backbone, NAMES[1], False, progress=False) == CacheCounts(added=3)
    expected = CacheCounts(added=3, present=3)
    assert fill_cache(cfg, backbone, NAMES[0], True, progress=False) == expected


def test_parts_together_are_the_whole(cfg, records):
    backbone = build_backbone(cfg)
    counts = [
        fill_cache(cfg, backbone, NAMES[1], False, part=(i, 2), progress=False) for i in range(2)
    ]
    assert counts == [CacheCounts(added=2), CacheCounts(added=1)]


def test_what_does_not_fit_is_counted(cfg, records, tool, capsys):
    size = 8 * 8 * 8 * 4  # one entry
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.MAX_GB = 3.5 * size / 1e9
    assert not tool.build_caches(cfg)
    out = capsys.readouterr().out
    assert "train: 3 added, 0 were there, 0 unreadable, 3 missing" in out


def test_unreadable_images_are_skipped_where_the_config_says_so(cfg, records):
    with open(records[1]["file_name"], "wb") as file:
        file.write(b"no image")
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    backbone = build_backbone(cfg)
    for name, is_train, added in ((NAMES[0], True, 4), (NAMES[1], False, 0)):
        counts = fill_cache(cfg, backbone, name, is_train, progress=False)
        assert (counts.added, counts.unreadable) == (added, 1)


def test_worker_processes_give_the_same_keys(cfg, records):
    fill_cache(cfg, backbone := build_backbone(cfg), NAMES[1], False, progress=False)
    cfg.DATALOADER.NUM_WORKERS = 1
    counts = fill_cache(cfg, backbone, NAMES[1], False, progress=False)
    assert counts == CacheCounts(present=3)


def test_random_sizes_cannot_be_cached(cfg, records):
    backbone = build_backbone(cfg)
    cfg.MODEL.DIFFPS.INPUT.RESIZE = "shortest_edge"
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96)
    with pytest.raises(ValueError, match="one version each.*MIN_SIZE_TRAIN"):
        fill_cache(cfg, backbone, NAMES[0], True, progress=False)
    fill_cache(cfg, backbone, NAMES[1], False, progress=False)


def test_no_cache_to_fill(cfg, records, tool):
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.KIND = "none"
    with pytest.raises(ValueError, match="CACHE.KIND to 'latent', 'feature' or 'compact'"):
        tool.build_caches(cfg)


def test_part_of_the_command_line(tool):
    assert tool.parse_part("1/4") == (1, 4)
    for text in ("4/4", "1", "a/b", "1/0"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not like 0/4"):
            tool.parse_part(text)


def test_a_lost_cache_is_only_slower(cfg, records):
    backbone = build_backbone(cfg)
    fill_cache(cfg, backbone, NAMES[1], False, progress=False)
    shutil.rmtree(backbone.cache.folder)
    features = backbone(torch.zeros(1, 3, 64, 64), keys=["ab" * 20])
    assert features["u3r0_k"].isfinite().all()
