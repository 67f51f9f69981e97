# SPDX-License-Identifier: Apache-2.0
"""How large a cache becomes, said before it is filled, and whether the disk has room for it."""

import importlib.util
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_backbone
from diffps_tiny import tiny_backbone_cfg
from PIL import Image
from random_diffusion import build_unet

from diffps.cache_building import fill_cache
from diffps.cache_size import CacheEstimate, check_room, estimate_cache, resized
from diffps.compact import HiddenStateProjector
from diffps.data import budget_size
from diffps.hooks import find_layers, list_layers
from person_search.config import build_config
from person_search.data import build_mapper

NAME = "cache_size_images"
SIZES = ((60, 80), (90, 40))


@pytest.fixture
def records(tmp_path):
    found = []
    for i, (height, width) in enumerate(SIZES):
        path = tmp_path / f"{i}.png"
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        record = {"file_name": str(path), "image_id": i, "height": height, "width": width}
        found.append({**record, "cam_id": None, "annotations": [], "queries": []})
    DatasetCatalog.register(NAME, lambda: found)
    yield found
    DatasetCatalog.remove(NAME)


@pytest.fixture
def cfg(tiny_sd, tmp_path):
    cfg = tiny_backbone_cfg(tiny_sd, CACHE__KIND="latent", CACHE__DIR=str(tmp_path / "cache"))
    cfg.DATALOADER.MAPPER, cfg.DATALOADER.NUM_WORKERS = "DiffPSMapper", 0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAME,), ()
    cfg.MODEL.DIFFPS.INPUT.RESIZE, cfg.MODEL.DIFFPS.INPUT.SIZE = "budget", [64, 128]
    return cfg


@pytest.fixture
def tool(repo_root):
    path = repo_root / "projects/DiffPS/tools/build_cache.py"
    spec = importlib.util.spec_from_file_location("build_diffps_cache", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def free_bytes(monkeypatch):
    """Sets what the disk claims to have."""

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
    backbone = build_backbone(cfg)
    once, estimate = (estimate_cache(cfg, backbone, NAME, is_train) for is_train in (False, True))
    fill_cache(cfg, backbone, NAME, True, progress=False)
    written, count = backbone.cache._count()
    assert estimate.entries == 2 * once.entries == count == 4
    assert estimate.bytes == 2 * once.bytes == pytest.approx(written, rel=0.03)


# images, and versions of each: in training with its mirror image
IMAGES = {
    "PRW, training": (5704, 2),
    "PRW, test": (6112, 1),
    "CUHK-SYSU, training": (11206, 2),
    "CUHK-SYSU, test": (6978, 1),
}


def test_totals_in_the_readme(repo_root):
    """Of the config's layers in a UNet of the shape of SD 2.1; the VAE has 4 channels, stride 8."""
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
    text = (repo_root / "projects/DiffPS/README.md").read_text()
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


def test_the_tool_says_it_first(cfg, records, tool, capsys, free_bytes):
    free_bytes(7_654_000_000)
    assert tool.build_caches(cfg)
    out = capsys.readouterr().out
    assert out.startswith("estimate: 4 entries of kind latent, 0.00 GB in all; 0.00 GB are there, ")
    assert "7.65 GB free in " in out and "warning" not in out


def test_what_cannot_fit_is_refused_before_the_first_image(
    cfg, records, tool, capsys, free_bytes, tmp_path
):
    free_bytes(1000)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    with pytest.raises(SystemExit) as e:
        tool.main(["--config-file", str(path), "MODEL.DIFFPS.BACKBONE.CACHE.KIND", "feature"])
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert "error: the feature cache does not fit: 0.00 GB more are needed (estimate)" in err
    for remedy in ("CACHE.KIND latent is much smaller", "CACHE.DIR can be", "CACHE.MAX_GB a limit"):
        assert f"MODEL.DIFFPS.BACKBONE.{remedy}" in err
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_room_counts_what_is_there_and_the_limit(cfg, records, free_bytes):
    backbone = build_backbone(cfg)
    fill_cache(cfg, backbone, NAME, False, progress=False)
    cache, wanted = backbone.cache, CacheEstimate(100, 50_000_000)
    free_bytes(50_000_000 - cache.bytes)
    assert len(check_room(cache, wanted, 0)) == 1
    free_bytes(50_000_000 - cache.bytes - 1)
    with pytest.raises(OSError, match=r"latent cache does not fit: 0\.05 GB.*CACHE\.DIR") as e:
        check_room(cache, wanted, 0)
    assert "much smaller" not in str(e.value)  # latent is the smallest
    (_, warning) = check_room(cache, wanted, 0.02)
    assert "MAX_GB 0.02 is enough for about 40% of the entries" in warning
    free_bytes(1000)
    with pytest.raises(OSError, match="does not fit"):
        check_room(cache, wanted, 0.02)
