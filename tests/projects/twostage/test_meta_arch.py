# SPDX-License-Identifier: Apache-2.0
"""The two-stage baseline at a tiny size, with detectors of torchvision and of Detectron2."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from person_search.config import add_person_search_config
from person_search.schema import UNLABELED_PID
from person_search.testing import PersonSearchModelTests
from twostage import add_twostage_config
from twostage.reid import CropEmbedder


def tiny_cfg(**changes) -> CfgNode:
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_twostage_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "TwoStage", "cpu", ""
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.REID.EMBED_DIM, cfg.MODEL.REID.NUM_PIDS = 16, 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 64
    two = cfg.MODEL.TWO_STAGE
    two.REID, two.CROP_SIZE, two.SCORE_THRESH = "timm/mobilenetv2_035", [64, 32], 0.0
    for key, value in changes.items():
        two[key] = value
    return cfg


class TwoStageTests(PersonSearchModelTests):
    detector = ""
    batch_tolerance = 2e-4

    def build(self, seed: int):
        torch.manual_seed(seed)
        return build_model(tiny_cfg(DETECTOR=self.detector))

    def training_input(self, persons: int) -> dict:
        boxes = torch.tensor([[5.0, 5, 20, 45], [30, 2, 45, 42]])[:persons]
        instances = Instances(self.image_size, gt_boxes=Boxes(boxes))
        instances.gt_classes = torch.zeros(persons, dtype=torch.int64)
        instances.gt_pids = torch.tensor([2, UNLABELED_PID])[:persons]
        image = torch.randint(0, 256, (3, *self.image_size), dtype=torch.uint8)
        return {"image": image, "instances": instances}


class TestTorchvisionDetector(TwoStageTests):
    detector = "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"


class TestDetectron2Detector(TwoStageTests):
    detector = "GeneralizedRCNN"
    batch_tolerance = 5e-3  # random crops amplify rounding of the boxes


def test_a_crop_is_the_region_of_the_box_in_rgb() -> None:
    """A red box in a BGR image gives red crops, whatever the size of the box."""
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    embedder = CropEmbedder(
        net, 3, embed_dim=0, crop_size=(8, 4), mean=[0.0] * 3, std=[1.0] * 3, is_bgr=True
    )
    image = torch.zeros(3, 40, 40)
    image[2, 10:30, 10:20] = 255.0
    crops = embedder.crops(image, torch.tensor([[10.0, 10, 20, 30], [25, 0, 35, 40]]))
    assert crops.shape == (2, 3, 8, 4)
    torch.testing.assert_close(crops[0, 0], torch.ones(8, 4), atol=0.1, rtol=0)
    assert crops[0, 1:].abs().max() == 0 and crops[1].abs().max() == 0


def test_a_detector_that_is_not_trained_stays_as_it_is() -> None:
    cfg = tiny_cfg(DETECTOR=TestTorchvisionDetector.detector, TRAIN_DETECTOR=False)
    model = build_model(cfg).train()
    assert not any(m.training for m in model.detector.modules())
    assert not any(p.requires_grad for p in model.detector.parameters())
    losses = model([TestTorchvisionDetector().training_input(2)])
    assert list(losses) == ["loss_oim"]


def test_features_without_projection_and_without_identities() -> None:
    cfg = tiny_cfg(PROJECT=False)
    cfg.MODEL.REID.NUM_PIDS = 0
    model = build_model(cfg).eval()
    assert model.oim is None
    output = model([TestTorchvisionDetector().image_input(queries=1)])[0]
    assert output["query_feats"].shape == (1, model.reid.embed_dim) == (1, 1280)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"DETECTOR": "torchvision/yolo"}, "'torchvision/yolo'; torchvision has"),
        ({"DETECTOR": "Nothing"}, "must be 'torchvision/<name>' or one of"),
        ({"DETECTOR_WEIGHTS": "none.pth"}, "DETECTOR_WEIGHTS 'none.pth' does not exist"),
        ({"REID": "hub/x"}, "must be 'timm/<name>', 'torchvision/<name>' or 'torchreid/<name>'"),
        ({"REID": "timm/nothing_at_all"}, "timm does not know"),
        ({"REID_WEIGHTS": "none.pth"}, "'none.pth' does not exist"),
    ],
)
def test_bad_settings(changes, message) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_model(tiny_cfg(**changes))
