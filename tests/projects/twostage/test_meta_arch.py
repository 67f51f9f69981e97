# SPDX-License-Identifier: Apache-2.0
"""The two-stage baseline at a tiny size, with detectors of torchvision and of Detectron2."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from twostage_tiny import DETECTOR, tiny_cfg

from person_search.engine import keys_without_weights
from person_search.schema import UNLABELED_PID
from person_search.testing import PersonSearchModelTests


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
    detector = DETECTOR


class TestDetectron2Detector(TwoStageTests):
    detector = "GeneralizedRCNN"
    batch_tolerance = 5e-3  # random crops amplify rounding of the boxes


def test_parts_that_are_not_trained_stay_as_they_are() -> None:
    model = build_model(tiny_cfg(TRAIN_DETECTOR=False, TRAIN_REID=False)).train()
    fixed = [*model.detector.modules(), *model.reid.net.modules()]
    assert not any(m.training for m in fixed)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["reid.project.weight", "reid.project.bias"]
    for _ in range(2):  # the table of the identities is empty at first
        losses = model([TestTorchvisionDetector().training_input(2)])
    assert list(losses) == ["loss_oim"]
    losses["loss_oim"].backward()
    assert model.reid.project.bias.grad.any()


def test_features_without_projection_and_without_identities() -> None:
    cfg = tiny_cfg(PROJECT=False)
    cfg.MODEL.REID.NUM_PIDS = 0
    model = build_model(cfg).eval()
    assert model.oim is None
    output = model([TestTorchvisionDetector().image_input(queries=1)])[0]
    assert output["query_feats"].shape == (1, model.reid.embed_dim) == (1, 1280)


def test_keys_that_leave_a_part_without_weights() -> None:
    detector, reid = (f"MODEL.TWO_STAGE.{part}_WEIGHTS" for part in ("DETECTOR", "REID"))
    assert keys_without_weights(tiny_cfg()) == [detector, reid]
    assert keys_without_weights(tiny_cfg(DETECTOR_WEIGHTS="coco")) == [reid]
    assert keys_without_weights(tiny_cfg(DETECTOR="predictions/x.npz")) == [reid]
    cfg = tiny_cfg()
    cfg.MODEL.WEIGHTS = "model_final.pth"
    assert keys_without_weights(cfg) == []
    cfg.MODEL.WEIGHTS, cfg.MODEL.META_ARCHITECTURE = "", "GeneralizedRCNN"
    assert keys_without_weights(cfg) == ["MODEL.WEIGHTS"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"DETECTOR": "torchvision/yolo"}, "'torchvision/yolo'; torchvision has"),
        ({"DETECTOR": "Nothing"}, "must be 'torchvision/<name>', 'predictions/<file>' or one of"),
        ({"DETECTOR": "predictions/none.npz"}, "none.npz"),
        ({"DETECTOR_WEIGHTS": "none.pth"}, "DETECTOR_WEIGHTS 'none.pth' does not exist"),
        ({"DETECTOR_WEIGHTS": "coco"}, "DETECTOR_CLASSES is 1; the COCO weights .* have 90"),
        ({"REID": "hub/x"}, "must be 'timm/<name>', .* or one of .*'PSDiffTeacher'"),
        ({"REID": "timm/resnet18x"}, "REID 'resnet18x' is unknown to timm. Similar"),
        ({"REID": "torchvision/x"}, "'torchvision/x'; torchvision has"),
        ({"REID": "torchreid/osnet_x0_25"}, r"pip install 'person-search\[torchreid\]'"),
        ({"REID_WEIGHTS": "none.pth"}, "REID_WEIGHTS 'none.pth' does not exist"),
    ],
)
def test_bad_settings(changes, message, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchreid", None)  # not installed
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_model(tiny_cfg(**changes))
