# SPDX-License-Identifier: Apache-2.0
"""The first stage: weights of detectors, downloads, detections of a predictions file."""

import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from psdiff_tiny import tiny_cfg as psdiff_cfg
from psdiff_tiny import tiny_model
from twostage_tiny import DETECTOR, tiny_cfg

from person_search.evaluation.predictions import PooledPredictions, write_predictions
from twostage.config import add_twostage_config
from twostage.detectors import DetectionsOfFile, build_detector

NAME = DETECTOR.removeprefix("torchvision/")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def coco_weights(tmp_path_factory) -> str:
    """A state dict as that of COCO, with random values."""
    path = str(tmp_path_factory.mktemp("coco") / "weights.pth")
    net = torchvision.models.get_model(NAME, weights=None, weights_backbone=None)
    torch.save(net.state_dict(), path)
    return path


def test_weights_of_coco_keep_their_classes(coco_weights) -> None:
    """Also in a model whose checkpoint follows, so that it fits."""
    cfg = tiny_cfg(DETECTOR_WEIGHTS=coco_weights, DETECTOR_CLASSES=90)
    found = build_detector(cfg).net.state_dict()
    wanted = torch.load(coco_weights)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    cfg.MODEL.WEIGHTS = "model_final.pth"
    later = build_detector(cfg).net.state_dict()
    assert {k: v.shape for k, v in later.items()} == {k: v.shape for k, v in wanted.items()}
    assert not torch.equal(later["roi_heads.box_predictor.cls_score.weight"],
                           wanted["roi_heads.box_predictor.cls_score.weight"])  # fmt: skip
    with pytest.raises(ValueError, match="with DETECTOR_CLASSES: 4 weights .*box_predictor"):
        build_detector(tiny_cfg(DETECTOR_WEIGHTS=coco_weights))


def test_downloaded_weights_are_those_in_the_cache(coco_weights, tmp_path, monkeypatch) -> None:
    """A file of an earlier download needs no network; without one, there is one sentence."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    cfg = tiny_cfg(DETECTOR_WEIGHTS="coco", DETECTOR_CLASSES=90)
    with pytest.raises(ValueError, match="'coco' could not be downloaded: .*no network.*give the"):
        build_detector(cfg)
    url = torchvision.models.get_model_weights(NAME).DEFAULT.url
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / url.rpartition("/")[2]).symlink_to(coco_weights)
    stem = "backbone.body.0.0.weight"
    found = build_detector(cfg).net.state_dict()
    assert torch.equal(found[stem], torch.load(coco_weights)[stem])


def test_a_model_of_this_repository_as_detector(tmp_path) -> None:
    """PSDiff with its own weights; its detections are those of the model itself."""
    model = tiny_model().eval()
    torch.save({"model": model.state_dict()}, tmp_path / "psdiff.pth")
    cfg = psdiff_cfg()
    add_twostage_config(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.TWO_STAGE.DETECTOR = "", "PSDiff"
    cfg.MODEL.TWO_STAGE.DETECTOR_WEIGHTS = str(tmp_path / "psdiff.pth")
    detector = build_detector(cfg).eval()
    image = {"image": torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8), "image_id": 3}
    torch.manual_seed(0)
    with torch.no_grad():
        (found,) = detector.detect([image], CPU)
        torch.manual_seed(0)
        (wanted,) = model.inference([image], do_postprocess=False)
    assert len(found) and torch.equal(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
    assert not found.has("reid_feats")


@pytest.mark.parametrize("by_name", [False, True])
def test_detections_of_a_file_in_the_frame_of_the_input(by_name, tmp_path) -> None:
    path = str(tmp_path / "found.npz")
    unit = np.ones((3, 1), np.float32)
    write_predictions(
        PooledPredictions(
            image_ids=np.array([7, 3]),
            det_offsets=np.array([0, 1, 3]),
            boxes=np.array([[0, 0, 10, 10], [20, 10, 60, 90], [0, 0, 100, 40]], np.float32),
            scores=np.array([0.9, 0.01, 0.5], np.float32),
            reid_feats=unit,
            query_ids=np.zeros(0, np.int64),
            query_feats=unit[:0],
            image_names=np.array(["b.jpg", "a.jpg"]),
        ),
        path,
    )
    if by_name:  # other programs may leave out the ids
        arrays = dict(np.load(path))
        del arrays["image_ids"]
        np.savez(path, **arrays)
    detector = build_detector(tiny_cfg(DETECTOR=f"predictions/{path}"))
    assert isinstance(detector, DetectionsOfFile) and detector.is_final
    item = {"image": torch.zeros(3, 50, 200), "height": 100, "width": 100}
    item |= {"file_name": "/data/a.jpg"} if by_name else {"image_id": 3}
    (found,) = detector.detect([item], CPU)
    assert found.pred_boxes.tensor.tolist() == [[40, 5, 120, 45], [0, 0, 200, 20]]
    assert found.scores.tolist() == pytest.approx([0.01, 0.5])
    other = item | {"file_name": "c.jpg", "image_id": 4}
    with pytest.raises(ValueError, match="has no detections for the image .* use a detector"):
        detector.detect([other], CPU)
    with pytest.raises(ValueError, match="DetectionsOfFile cannot be trained; set .* False"):
        detector.losses([item], CPU)
