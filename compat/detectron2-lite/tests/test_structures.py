# SPDX-License-Identifier: Apache-2.0
"""Boxes, image lists and instances, by hand-computed cases and rules for all inputs."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    PolygonMasks,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.boxes import matched_pairwise_iou
from hypothesis import given
from hypothesis import strategies as st

coordinates = st.floats(-100, 100, width=32)


@st.composite
def box_lists(draw, min_size=0):
    corners = st.tuples(coordinates, coordinates, st.floats(0, 50), st.floats(0, 50))
    rows = [(x, y, x + w, y + h) for x, y, w, h in draw(st.lists(corners, min_size=min_size))]
    return Boxes(torch.tensor(rows, dtype=torch.float32))


def slow_iou(a, b):
    """IoU of two boxes of four numbers, from the definition."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return intersection / (sum(areas) - intersection) if intersection > 0 else 0.0


@given(box_lists(), box_lists())
def test_iou_is_the_definition(first, second):
    iou = pairwise_iou(first, second)
    assert iou.shape == (len(first), len(second))
    for i, a in enumerate(first.tensor.tolist()):
        for j, b in enumerate(second.tensor.tolist()):
            assert iou[i, j].item() == pytest.approx(slow_iou(a, b), abs=2e-3)


def test_overlaps_by_hand():
    unit, half = Boxes([[0.0, 0, 2, 2]]), Boxes([[1.0, 0, 3, 2], [0, 0, 1, 1], [5, 5, 5, 5]])
    assert pairwise_iou(unit, half).tolist() == [pytest.approx([1 / 3, 1 / 4, 0])]
    assert pairwise_ioa(unit, half).tolist() == [pytest.approx([1 / 2, 1, 0])]
    assert matched_pairwise_iou(half[:2], half[:2]).tolist() == [1, 1]
    with pytest.raises(AssertionError):
        matched_pairwise_iou(unit, half)


def test_distance_of_points_to_sides():
    distance = pairwise_point_box_distance(torch.tensor([[1.0, 2.0]]), Boxes([[0.0, 0, 4, 8]]))
    assert distance.tolist() == [[[1, 2, 3, 6]]]


@given(box_lists(), st.integers(1, 60), st.integers(1, 60))
def test_clipped_boxes_are_inside(boxes, height, width):
    boxes.clip((height, width))
    assert (boxes.tensor >= 0).all()
    assert (boxes.tensor[:, 0::2] <= width).all() and (boxes.tensor[:, 1::2] <= height).all()


def test_clip_refuses_nan():
    with pytest.raises(AssertionError, match="infinite or NaN"):
        Boxes([[0.0, math.nan, 1, 1]]).clip((4, 4))


def test_empty_boxes_keep_four_columns():
    for empty in (Boxes(torch.zeros(0)), Boxes([]), Boxes.cat([]), Boxes([[0, 0, 1, 1]])[[]]):
        assert empty.tensor.shape == (0, 4) and len(empty) == 0


def test_boxes_index_and_join():
    boxes = Boxes([[0.0, 0, 1, 1], [2, 2, 4, 4]])
    assert boxes[-1].tensor.tolist() == [[2, 2, 4, 4]]
    assert boxes[torch.tensor([False, True])].area().tolist() == [4]
    joined = Boxes.cat([boxes])
    joined.tensor[0, 0] = 9
    assert boxes.tensor[0, 0] == 0
    with pytest.raises(AssertionError, match="matrix"):
        boxes[torch.tensor([[0]])]


@given(st.lists(coordinates, min_size=4, max_size=4))
def test_box_modes_are_inverse(numbers):
    there = BoxMode.convert(numbers, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    back = BoxMode.convert(there, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert back == pytest.approx(numbers, abs=1e-3)


def test_box_mode_keeps_containers_and_input():
    array = np.array([[1.0, 2, 3, 4]])
    assert BoxMode.convert(array, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS).tolist() == [[1, 2, 4, 6]]
    assert array.tolist() == [[1, 2, 3, 4]]
    assert BoxMode.convert((1, 2, 4, 6), 0, 1) == (1, 2, 3, 4)
    quarter = BoxMode.convert([10.0, 10, 4, 2, 90], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    assert quarter == pytest.approx([9, 8, 11, 12])


def test_box_mode_refusals():
    with pytest.raises(AssertionError, match="relative"):
        BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
    with pytest.raises(NotImplementedError, match="XYWH_ABS to XYXY_ABS"):
        BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS)
    with pytest.raises(AssertionError, match="4 or 5"):
        BoxMode.convert([0, 0], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


def test_box_mode_travels():
    assert json.dumps({"mode": BoxMode.XYWH_ABS}) == '{"mode": 1}'
    assert pickle.loads(pickle.dumps(BoxMode.XYWH_ABS)) is BoxMode.XYWH_ABS
    assert b"box_mode" not in pickle.dumps(BoxMode.XYWH_ABS)  # a module only lite has


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3))
def test_image_list_keeps_images_and_pads(sizes):
    images = [torch.rand(3, h, w) for h, w in sizes]
    batch = ImageList.from_tensors(images, 4, pad_value=-1.0)
    assert batch.tensor.shape[-2] % 4 == 0 and batch.tensor.shape[-1] % 4 == 0
    assert batch.image_sizes == sizes
    assert all(torch.equal(batch[i], image) for i, image in enumerate(images))
    padding = batch.tensor.numel() - sum(3 * h * w for h, w in sizes)
    assert (batch.tensor == -1).sum() == padding


class TestInstances:
    def make(self):
        return Instances((4, 6), gt_boxes=Boxes(torch.rand(3, 4)), gt_pids=torch.arange(3))

    def test_fields(self):
        instances = self.make()
        instances.names = ["a", "b", "c"]
        assert instances.has("names") and len(instances) == 3
        assert set(instances.get_fields()) == {"gt_boxes", "gt_pids", "names"}
        instances.remove("names")
        with pytest.raises(AttributeError, match="names"):
            _ = instances.names
        with pytest.raises(AssertionError, match="length 2"):
            instances.scores = torch.zeros(2)

    def test_indexing(self):
        instances = self.make()
        assert instances[-1].gt_pids.tolist() == [2]
        assert instances[[2, 0]].gt_pids.tolist() == [2, 0]
        assert len(instances[instances.gt_pids > 5]) == 0
        with pytest.raises(IndexError):
            instances[3]

    def test_cat(self):
        joined = Instances.cat([self.make(), self.make()])
        assert joined.gt_pids.tolist() == [0, 1, 2, 0, 1, 2] and len(joined.gt_boxes) == 6
        with pytest.raises(AssertionError):
            Instances.cat([self.make(), Instances((1, 1))])

    def test_without_fields(self):
        with pytest.raises(NotImplementedError):
            len(Instances((4, 6)))
        with pytest.raises(NotImplementedError):
            iter(self.make())

    def test_pickle_and_to(self):
        copy = pickle.loads(pickle.dumps(self.make())).to("cpu")
        assert copy.image_size == (4, 6) and copy.gt_pids.tolist() == [0, 1, 2]


def test_masks_of_a_square():
    square = [[np.array([2.0, 2, 6, 2, 6, 6, 2, 6])]]
    assert PolygonMasks(square).area().tolist() == [16]
    bits = BitMasks.from_polygon_masks(square, 8, 8)
    assert bits.get_bounding_boxes().tensor.tolist() == [[2, 2, 6, 6]]
    assert PolygonMasks(square).get_bounding_boxes().tensor.tolist() == [[2, 2, 6, 6]]
    with pytest.raises(ValueError, match="3 points"):
        PolygonMasks([[np.array([1.0, 2, 3, 4])]])
