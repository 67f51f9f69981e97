# SPDX-License-Identifier: Apache-2.0
"""Caches filled before training, and the estimate of their size."""

import argparse
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_backbone
from diffps_tiny import tiny_backbone_cfg
from PIL import Image
from programs import load_program
from random_diffusion import build_unet

from diffps.cache_building import CacheCounts, check_room, estimate_cache, fill_cache, resized
from diffps.compact import HiddenStateProjector
from diffps.hooks import find_layers, list_layers
from person_search.config import build_config
from person_search.data import build_mapper
from person_search.utils.sizes import budget_size

NAMES = ("cache_building_train", "cache_building_test")
SIZES = ((60, 80), (90, 40), (60, 80))


@pytest.fixture
def records(tmp_path):
    """Three images, as training and as test set."""
    found = []
    for i, (height, width) in enumerate(SIZES):
        path = tmp_path / f"{i}.png"
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        record = {"file_name": str(path), "image_id": i, "height": height, "width": width}
        found.append({**record, "cam_id": None, "annotations": [], "queries": []})
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


@pytest.fixture(scope="module")
def tool():
    return load_program("projects/DiffPS/tools/build_cache.py")


@pytest.fixture
def build_caches(tool, cfg, records, tmp_path):
    """Runs the tool with the config; returns its exit status."""

    def run(*overrides):
        path = tmp_path / "config.yaml"
        path.write_text(cfg.dump())
        return tool.main(["--config-file", str(path), *overrides])

    return run


@pytest.mark.parametrize("kind", ["latent", "feature", "compact"])
def test_training_and_evaluation_find_every_image(cfg, records, build_caches, capsys, kind):
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.KIND = kind
    assert build_caches() == 0
    assert "cache_building_train: 6 added, 0 present" in capsys.readouterr().out
    backbone = build_backbone(cfg)
    for is_train, draws in ((True, 4), (False, 1)):
        mapper = build_mapper(cfg, is_train)
        for record in records * draws:
            item = mapper(record)
            images = ((item["image"] - 127.5) / 127.5)[None]
            backbone(images, [images.shape[2:]], [item["image_digest"]])
    assert (backbone.cache.hits, backbone.cache.misses) == (15, 0)
    assert backbone.cache.count() == 6  # test images are the unflipped ones


def test_an_interrupted_run_resumes(cfg, records):
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


def test_what_does_not_fit_is_counted(cfg, build_caches, capsys):
    size = 8 * 8 * 8 * 4  # one entry
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.MAX_GB = 3.5 * size / 1e9
    assert build_caches() == 1
    out = capsys.readouterr().out
    assert "train: 3 added, 0 present, 0 unreadable, 3 missing" in out


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
    with pytest.raises(ValueError, match="one version of each image.*MIN_SIZE_TRAIN"):
        fill_cache(cfg, backbone, NAMES[0], True, progress=False)
    fill_cache(cfg, backbone, NAMES[1], False, progress=False)


def test_no_cache_to_fill(cfg, build_caches, capsys):
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.KIND = "none"
    with pytest.raises(SystemExit) as error:
        build_caches()
    assert error.value.code == 2
    assert "CACHE.KIND to 'latent', 'feature' or 'compact'" in capsys.readouterr().err


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


# ---- size ---------------------------------------------------------------------------------------
@pytest.fixture
def free_bytes(monkeypatch):
    """Sets the free bytes that the disk reports."""

    def set_free(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=count))

    return set_free


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("latent", "float32"),
        ("latent", "bfloat16"),
        ("feature", "float32"),
        ("compact", "float32"),
    ],
)
def test_the_estimate_is_what_gets_written(cfg, records, kind, dtype):
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.KIND, cfg.MODEL.DIFFPS.BACKBONE.DTYPE = kind, dtype
    cfg.MODEL.DIFFPS.INPUT.RESIZE, cfg.MODEL.DIFFPS.INPUT.SIZE = "budget", [64, 128]
    backbone = build_backbone(cfg)
    once, estimate = (
        estimate_cache(cfg, backbone, NAMES[0], is_train) for is_train in (False, True)
    )
    fill_cache(cfg, backbone, NAMES[0], True, progress=False)
    written, count = backbone.cache._count()
    assert estimate[0] == 2 * once[0] == count == 6
    assert estimate[1] == 2 * once[1] == pytest.approx(written, rel=0.03)


# images, and versions of each: in training with its mirror image
IMAGES = {
    "PRW, training": (5704, 2),
    "PRW, test": (6112, 1),
    "CUHK-SYSU, training": (11206, 2),
    "CUHK-SYSU, test": (6978, 1),
}


def test_totals_in_the_documentation(repo_root):
    """For a UNet of the shape of SD 2.1, and a VAE with 4 channels and stride 8."""
    cfg = build_config(repo_root / "configs/DiffPS/diffps_sd21_prw.yaml", ["MODEL.DEVICE", "cpu"])
    unet, backbone = build_unet("sd21", "meta"), cfg.MODEL.DIFFPS.BACKBONE
    available = list_layers(unet)
    names = [*backbone.OUT_FEATURES, *(f"{name}_map" for name in backbone.ATTN.LAYERS)]
    layers = find_layers(names, available, "")
    sources = HiddenStateProjector(unet, layers, available).source_layers
    side, half = tuple(cfg.MODEL.DIFFPS.INPUT.SIZE), torch.float16
    entry = {"latent": 2 * 4 * (side[0] // 8) * (side[1] // 8) * half.itemsize}
    entry["compact"] = sum(layer.bytes_of(side, half) for layer in sources)
    entry["feature"] = sum(layer.bytes_of(side, half) for layer in layers)
    text = (repo_root / "docs/results_diffps.md").read_text()
    for kind, size in entry.items():
        assert f"| `{kind}` | {size / 1e6:.{1 if kind == 'latent' else 0}f} MB |" in text
    for name, (images, versions) in IMAGES.items():
        entries = images * versions
        latent, *large = (entries * size / 1e9 for size in entry.values())
        cells = [f"{entries:,}", f"{latent:.1f} GB", *(f"{x:,.0f} GB" for x in large)]
        assert f"| {name} | {' | '.join(cells)} |" in text
    assert budget_size((1080, 1920), side[0] * side[1]) == (960, 1664)
    assert 1 - 960 * 1664 / side[0] ** 2 == pytest.approx(0.025)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("mode", ["fixed", "budget", "shortest_edge"])
def test_sizes_are_those_of_the_mapper(cfg, records, mode, is_train):
    cfg.MODEL.DIFFPS.INPUT.RESIZE = mode
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (96,), 120
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 50, 100
    mapper = build_mapper(cfg, is_train)
    for record in records:
        size = resized(cfg, (record["height"], record["width"]), is_train)
        assert size == tuple(mapper(record)["image"].shape[1:])


def test_the_tool_prints_the_estimate_first(build_caches, capsys, free_bytes):
    free_bytes(7_654_000_000)
    assert build_caches() == 0
    out = capsys.readouterr().out
    assert out.startswith("estimate: 9 entries of kind latent, 0.00 GB in total; 0.00 GB present, ")
    assert "7.65 GB free in " in out and "warning" not in out


def test_what_cannot_fit_is_refused_before_the_first_image(
    build_caches, capsys, free_bytes, tmp_path
):
    free_bytes(1000)
    with pytest.raises(SystemExit) as e:
        build_caches("MODEL.DIFFPS.BACKBONE.CACHE.KIND", "feature")
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert "error: the feature cache does not fit: 0.00 GB more are needed (estimate)" in err
    for remedy in ("CACHE.KIND latent is much smaller", "CACHE.DIR can be", "CACHE.MAX_GB a limit"):
        assert f"MODEL.DIFFPS.BACKBONE.{remedy}" in err
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_room_considers_existing_entries_and_the_limit(cfg, records, free_bytes):
    backbone = build_backbone(cfg)
    fill_cache(cfg, backbone, NAMES[0], False, progress=False)
    cache, wanted = backbone.cache, (100, 50_000_000)
    free_bytes(50_000_000 - cache.bytes)
    assert len(check_room(cache, *wanted, 0)) == 1
    free_bytes(50_000_000 - cache.bytes - 1)
    with pytest.raises(OSError, match=r"latent cache does not fit: 0\.05 GB.*CACHE\.DIR") as e:
        check_room(cache, *wanted, 0)
    assert "much smaller" not in str(e.value)  # latent is the smallest
    (_, warning) = check_room(cache, *wanted, 0.02)
    assert "MAX_GB 0.02 is enough for about 40% of the entries" in warning
    free_bytes(1000)
    with pytest.raises(OSError, match="does not fit"):
        check_room(cache, *wanted, 0.02)
