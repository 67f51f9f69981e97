# SPDX-License-Identifier: Apache-2.0
"""Pointing accuracy and energy on constructed maps."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from diffps_tiny import tiny_backbone
from PIL import Image
from pointing import (
    AnnotatedImage,
    AttentionMaps,
    Pointing,
    cells_inside,
    measure,
    part_boxes,
    read_annotated_image,
)

from diffps.attention import minmax_normalize
from diffps.tiny import write_tiny_diffusion


@pytest.fixture(scope="module")
def tiny_sd(tmp_path_factory):
    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion") / "sd21")


def test_cells_by_their_center():
    # cells of 8 pixels, centers at 4, 12, 20, 28; the box takes columns 1 and 2, row 0
    inside = cells_inside((2, 4), [(5, 0, 21, 12)], 8)
    assert inside.tolist() == [[False, True, True, False], [False] * 4]
    assert cells_inside((2, 4), [(5, 0, 21, 12.5)], 8).sum() == 4
    assert not cells_inside((2, 4), [], 8).any()


def test_peak_chance_and_energy_by_hand():
    boxes = [(0, 0, 8, 8)]
    result = Pointing()
    result.add(np.array([[0.6, 0.1], [0.2, 0.3]]), boxes, 8)  # inside 0.6, outside 0.2 on average
    result.add(np.array([[0.1, 0.5], [0.1, 0.0]]), boxes, 8)  # inside 0.1, outside 0.2
    assert result.images == 2
    assert result.accuracy == 50
    assert result.chance == 25
    assert result.energy == pytest.approx(math.sqrt(3 * 0.5))


def test_images_without_persons_or_background_are_ignored():
    result = Pointing()
    result.add(np.ones((2, 2)), [], 8)
    result.add(np.ones((2, 2)), [(0, 0, 16, 16)], 8)
    result.add(np.ones((2, 2)), [(3, 3, 3.5, 3.5)], 8)  # no center of a cell
    assert result.images == 0
    assert math.isnan(result.accuracy) and math.isnan(result.chance) and math.isnan(result.energy)


def test_a_map_of_zeros_has_energy_one():
    result = Pointing()
    result.add(np.zeros((2, 2)), [(0, 0, 8, 8)], 8)
    assert result.energy == pytest.approx(1)


def test_boxes_of_parts():
    boxes = [(10.0, 100.0, 50.0, 200.0)]
    assert part_boxes(boxes, "person") == boxes
    assert part_boxes(boxes, "head") == [(10, 100, 50, 115)]
    assert part_boxes(boxes, "shirts") == [(10, 115, 50, 150)]
    assert part_boxes(boxes, "shoes")[0][3] == 200


def test_image_of_a_record(tmp_path):
    path = str(tmp_path / "a.png")
    Image.fromarray(np.full((240, 320, 3), (255, 0, 0), np.uint8)).save(path)
    annotation = {"bbox": [10, 60, 20, 120], "bbox_mode": BoxMode.XYWH_ABS, "person_id": -1}
    image = read_annotated_image({"file_name": path, "annotations": [annotation]})
    assert image.image.shape == (3, 256, 320)
    assert image.image[:, 0, 0].tolist() == [1, -1, -1]  # RGB
    assert image.boxes[0] == pytest.approx((10, 64, 30, 192))


def test_maps_are_those_of_the_backbone(tiny_sd):
    """The map of ``DiffusionBackbone`` for one layer and head, before stretching."""
    image = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = AttentionMaps(tiny_sd, ["u1r2", "u3r0"], ["person", "shoes"])(image)
    assert set(maps) == {"person", "shoes"} and set(maps["person"]) == {"u1r2", "u3r0"}
    assert maps["person"]["u1r2"].shape == (1, 4, 2, 4)  # heads of level 1; stride 32
    backbone = tiny_backbone(tiny_sd, OUT_FEATURES=[], ATTN__LAYERS=["u3r0"], ATTN__HEADS=[1])
    ours = minmax_normalize(maps["person"]["u3r0"][:, 1:2], [(8, 16)])
    torch.testing.assert_close(ours, backbone(image)["attn"])
    assert not torch.equal(maps["person"]["u3r0"], maps["shoes"]["u3r0"])


def test_measure_takes_every_word_layer_and_head(tiny_sd):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 64, 64, generator=generator) * 2 - 1
    annotated = [AnnotatedImage(image, [(0.0, 0.0, 30.0, 64.0)]) for image in images]
    maps = AttentionMaps(tiny_sd, ["u3r0"], ["person", "head"])
    results = measure(maps, annotated, batch=2)
    assert set(results) == {(w, "u3r0", h) for w in ("person", "head") for h in ("0", "1", "all")}
    whole = results["person", "u3r0", "all"]
    assert whole.images == 3 and whole.chance == 50
    expected = Pointing()
    for image in images:
        mean = maps(image[None])["person"]["u3r0"].mean(1)[0]
        expected.add(mean.numpy(), [(0.0, 0.0, 30.0, 64.0)], 8)
    assert whole.accuracy == pytest.approx(expected.accuracy)
    assert whole.energy == pytest.approx(expected.energy)
