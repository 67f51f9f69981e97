# SPDX-License-Identifier: Apache-2.0
"""TorchScript compiles the parts that it compiles in Detectron2, with the same results."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.export import scripting_with_instances
from detectron2.export.torchscript_patch import (
    freeze_training_mode,
    patch_builtin_len,
    patch_instances,
)
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SIZES = [(32, 32), (30, 40)]
SHAPES = {"f": ShapeSpec(channels=8, stride=16)}
FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": torch.Tensor,
    "pred_boxes": Boxes,
    "scores": torch.Tensor,
    "pred_classes": torch.Tensor,
    "pred_masks": torch.Tensor,
    "pred_keypoints": torch.Tensor,
    "pred_keypoint_heatmaps": torch.Tensor,
}


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["f"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["f"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.update(NAME="FastRCNNConvFCHead", NUM_FC=1, FC_DIM=16)
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    return cfg


@pytest.fixture
def images_and_features():
    torch.manual_seed(0)
    return ImageList(torch.rand(2, 30, 40), SIZES), {"f": torch.rand(2, 8, 2, 3)}


def test_rpn(cfg, images_and_features):
    rpn = RPN(cfg, SHAPES).eval()
    scripted = scripting_with_instances(
        rpn, {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor}
    )
    expected, _ = rpn(*images_and_features)
    actual, _ = scripted(*images_and_features)
    for a, e in zip(actual, expected, strict=True):
        assert a.image_size == e.image_size
        assert torch.equal(a.proposal_boxes.tensor, e.proposal_boxes.tensor)
        assert torch.equal(a.objectness_logits, e.objectness_logits)


def test_roi_heads(cfg, images_and_features):
    heads = StandardROIHeads(cfg, SHAPES).eval()
    corners = torch.tensor([[1.0, 1, 13, 23], [2, 2, 16, 28]])
    proposals = [
        Instances(size, proposal_boxes=Boxes(corners), objectness_logits=torch.ones(2))
        for size in SIZES
    ]
    expected, _ = heads(*images_and_features, proposals)
    with freeze_training_mode(heads), patch_instances(FIELDS) as scripted_instances:
        converted = [scripted_instances.from_instances(p) for p in proposals]
        actual, _ = torch.jit.script(heads)(*images_and_features, converted)
    for a, e in zip(actual, expected, strict=True):
        assert len(e) > 0
        assert torch.equal(a.pred_boxes.tensor, e.pred_boxes.tensor)
        assert torch.equal(a.scores, e.scores)


def test_anchors_follow_the_size_of_the_map():
    generator = DefaultAnchorGenerator(sizes=[8], aspect_ratios=[1, 2], strides=[4, 8])
    scripted = torch.jit.script(generator)
    for height, width in ((3, 2), (1, 5)):
        maps = [torch.zeros(1, 1, 2 * height, 2 * width), torch.zeros(1, 1, height, width)]
        for a, e in zip(scripted(maps), generator(maps), strict=True):
            assert torch.equal(a.tensor, e.tensor)


@pytest.mark.parametrize("scales", [(1 / 4,), (1 / 4, 1 / 8)])
def test_pooler(scales):
    pooler = ROIPooler(3, scales, 0, "ROIAlignV2", canonical_box_size=32)
    maps = [torch.rand(2, 3, 16 // 2**i, 16 // 2**i) for i in range(len(scales))]
    boxes = [Boxes(torch.tensor([[0.0, 0, 9, 9], [3, 4, 60, 60]])), Boxes(torch.zeros(0, 4))]
    assert torch.equal(torch.jit.script(pooler)(maps, boxes), pooler(maps, boxes))


def test_traced_boxes_may_change_in_number():
    layers = FastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        num_classes=2,
    )

    class Decode(torch.nn.Module):
        def forward(self, deltas, boxes):
            instances = Instances((9, 9), proposal_boxes=Boxes(boxes))
            return layers.predict_boxes((None, deltas), [instances])

    with torch.no_grad(), patch_builtin_len():
        traced = torch.jit.trace(Decode(), (torch.randn(5, 8), torch.rand(5, 4)))
        for count in (3, 7):
            assert traced(torch.randn(count, 8), torch.rand(count, 4))[0].shape == (count, 8)
