# SPDX-License-Identifier: Apache-2.0
"""DiffPSMapper: sizes, boxes and digests."""

import numpy as np
import pytest
import torch
from diffps_tiny import tiny_backbone_cfg
from PIL import Image

from diffps.data import BilinearResize, DiffPSMapper, replace_resize
from diffps.latents import image_digest
from person_search.data import build_mapper
from person_search.utils.sizes import budget_size


@pytest.fixture
def record(tmp_path):
    """A record of an image of 90 x 160 with one person."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    box = {"bbox": [16.0, 9.0, 80.0, 81.0], "bbox_mode": 0, "category_id": 0, "person_id": 3}
    return {
        "file_name": str(tmp_path / "0.png"),
        "image_id": 0,
        "height": 90,
        "width": 160,
        "cam_id": None,
        "annotations": [box],
        "queries": [{"query_id": 5, "bbox": box["bbox"], "bbox_mode": 0}],
    }


def make_mapper(is_train=False, resize="fixed", flip=False, **backbone):
    cfg = tiny_backbone_cfg("unused", **backbone)
    cfg.DATALOADER.MAPPER = "DiffPSMapper"
    cfg.MODEL.DIFFPS.INPUT.RESIZE = resize
    cfg.INPUT.RANDOM_FLIP = "horizontal" if flip else "none"
    return build_mapper(cfg, is_train)


@pytest.mark.parametrize("resize", ["fixed", "shortest_edge"])
def test_largest_training_image_bounds_what_the_mapper_returns(record, resize):
    """The check of the shared memory relies on it; the release's resizing gives float32."""
    mapper = make_mapper(is_train=True, resize=resize)
    image = mapper(record)["image"]
    cfg = tiny_backbone_cfg("unused")
    cfg.MODEL.DIFFPS.INPUT.RESIZE = resize
    height, width, value_bytes = mapper.largest_training_image(cfg)
    assert value_bytes == image.element_size()
    assert image.numel() * value_bytes <= 3 * height * width * value_bytes


def test_fixed_size_scales_boxes_per_axis(record):
    output = make_mapper(is_train=True)(record)
    assert output["image"].shape == (3, 128, 128) and output["image"].dtype == torch.float32
    # x by 128 / 160, y by 128 / 90
    expected = [16 * 0.8, 9 * 128 / 90, 80 * 0.8, 81 * 128 / 90]
    assert output["instances"].gt_boxes.tensor[0].tolist() == pytest.approx(expected)
    queries = make_mapper()(record)["queries"]
    assert queries.pred_boxes.tensor[0].tolist() == pytest.approx(expected)


def test_resize_is_torch_bilinear_without_antialias():
    image = np.zeros((1, 4, 3), np.uint8)
    image[0, :, 0] = [0, 10, 20, 30]
    # centers of 2 pixels lie at 0.5 and 2.5 of the old grid; antialias would spread further
    resized = BilinearResize((1, 4), (1, 2)).apply_image(image)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized[0, :, 0], [5, 25])


def test_budget_keeps_the_aspect_ratio(record):
    image = make_mapper(resize="budget")(record)["image"]
    assert image.shape == (3, 64, 128)


@pytest.mark.parametrize(
    "size, expected",
    [((1080, 1920), (960, 1664)), ((1000, 1000), (1280, 1280)), ((720, 576), (1408, 1152))],
)
def test_budget_of_the_datasets(size, expected):
    assert budget_size(size, 1280 * 1280) == expected


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (37, 41)])
def test_budget_of_odd_sizes(size):
    height, width = budget_size(size, 256 * 256)
    assert height % 64 == width % 64 == 0 and 0 < height * width <= 256 * 256


def test_shortest_edge_is_that_of_detectron2(record):
    cfg_image = make_mapper(resize="shortest_edge")(record)["image"]
    assert cfg_image.dtype == torch.uint8 and min(cfg_image.shape[1:]) == 750  # MAX_SIZE_TEST 1333


def test_digest_only_where_it_is_used(record, tmp_path):
    assert "image_digest" not in make_mapper()(record)
    assert "image_digest" in make_mapper(NOISE="seeded")(record)
    output = make_mapper(CACHE__KIND="latent", CACHE__DIR=str(tmp_path))(record)
    assert output["image_digest"] == image_digest(output["image"])


def test_digest_depends_on_flip_size_and_content(record, tmp_path):
    make = {"CACHE__KIND": "latent"}
    plain = make_mapper(**make)(record)
    flips = {make_mapper(is_train=True, flip=True, **make)(record)["image_digest"]
             for _ in range(20)}  # fmt: skip
    assert len(flips) == 2 and plain["image_digest"] in flips
    other_size = make_mapper(resize="budget", **make)(record)["image_digest"]
    assert other_size not in flips
    pixels = np.asarray(Image.open(record["file_name"])).copy()
    pixels[40, 40] ^= 255
    Image.fromarray(pixels).save(record["file_name"])
    assert make_mapper(**make)(record)["image_digest"] not in flips


def test_invalid_settings_are_named():
    with pytest.raises(ValueError, match="RESIZE is 'pad'.*fixed"):
        make_mapper(resize="pad")
    with pytest.raises(ValueError, match=r"SIZE is \[100, 128\].*multiples of 64"):
        replace_resize([], "fixed", [100, 128])


def test_is_registered():
    assert isinstance(make_mapper(), DiffPSMapper)
