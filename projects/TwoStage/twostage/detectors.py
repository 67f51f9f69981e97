# SPDX-License-Identifier: Apache-2.0
"""The first stage: detectors of torchvision, of Detectron2 and of a file behind one interface."""

import os

import numpy as np
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from person_search.evaluation import read_predictions
from person_search.utils.weight_files import read_weights
from twostage.weights import local_file

_KEY = "MODEL.TWO_STAGE.DETECTOR"
_WEIGHTS = "MODEL.TWO_STAGE.DETECTOR_WEIGHTS"
_PERSON_LABEL = 1
"""Label of a person in the detectors of torchvision; 0 is the background."""


class Detector(nn.Module):
    """Base class of the detectors.

    Attributes:
        is_final: The detections need neither a threshold nor NMS.
    """

    is_final = False

    def losses(self, batched_inputs: list[dict], device: torch.device) -> dict[str, Tensor]:
        """Returns the losses of a training batch, named ``loss_det_*``."""
        raise ValueError(
            f"{_KEY}: {type(self).__name__} cannot be trained; set MODEL.TWO_STAGE.TRAIN_DETECTOR "
            "False."
        )

    def detect(self, batched_inputs: list[dict], device: torch.device) -> list[Instances]:
        """Returns ``pred_boxes`` and ``scores`` of each image, in the frame of the input."""
        raise NotImplementedError(f"{type(self).__name__} must implement detect()")


class TorchvisionDetector(Detector):
    """A model of ``torchvision.models.detection`` that keeps persons only.

    Args:
        net: Detector. It normalizes and resizes images itself and returns boxes in their frame.
        scale: Factor that brings pixel values to 0 .. 1.
        is_bgr: Whether images come in BGR order.
    """

    def __init__(self, net: nn.Module, *, scale: float = 1 / 255, is_bgr: bool = False) -> None:
        super().__init__()
        self.net, self.scale, self.is_bgr = net, scale, is_bgr

    def _images(self, batched_inputs: list[dict], device: torch.device) -> list[Tensor]:
        images = [x["image"].to(device).float() * self.scale for x in batched_inputs]
        return [image.flip(0) for image in images] if self.is_bgr else images

    def losses(self, batched_inputs: list[dict], device: torch.device) -> dict[str, Tensor]:
        """See :meth:`Detector.losses`."""
        targets = []
        for x in batched_inputs:
            boxes = x["instances"].gt_boxes.tensor.to(device)
            labels = torch.full((len(boxes),), _PERSON_LABEL, dtype=torch.int64, device=device)
            targets.append({"boxes": boxes, "labels": labels})
        losses = self.net(self._images(batched_inputs, device), targets)
        return {f"loss_det_{name.removeprefix('loss_')}": value for name, value in losses.items()}

    def detect(self, batched_inputs: list[dict], device: torch.device) -> list[Instances]:
        """See :meth:`Detector.detect`."""
        results = []
        outputs = self.net(self._images(batched_inputs, device))
        for x, output in zip(batched_inputs, outputs, strict=True):
            person = output["labels"] == _PERSON_LABEL
            results.append(
                Instances(
                    tuple(x["image"].shape[-2:]),
                    pred_boxes=Boxes(output["boxes"][person].float()),
                    scores=output["scores"][person].float(),
                )
            )
        return results


class Detectron2Detector(Detector):
    """A meta-architecture of Detectron2 such as ``GeneralizedRCNN``, with one class.

    Args:
        net: Model with ``forward`` for training and ``inference`` for testing.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def losses(self, batched_inputs: list[dict], device: torch.device) -> dict[str, Tensor]:
        """See :meth:`Detector.losses`."""
        losses = self.net(batched_inputs)
        return {f"loss_det_{name.removeprefix('loss_')}": value for name, value in losses.items()}

    def detect(self, batched_inputs: list[dict], device: torch.device) -> list[Instances]:
        """See :meth:`Detector.detect`."""
        found = self.net.inference(batched_inputs, do_postprocess=False)
        persons = [x[x.pred_classes == 0] for x in found]
        return [Instances(x.image_size, pred_boxes=x.pred_boxes, scores=x.scores) for x in persons]


class DetectionsOfFile(Detector):
    """The detections of a predictions file (docs/predictions_format.md), for its test set only.

    Args:
        path: Predictions file.
    """

    is_final = True

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.predictions = path, read_predictions(path)
        ids, names = self.predictions.image_ids, self.predictions.image_names
        keys = ids if names is None or (ids >= 0).all() else names
        self.by_name = keys is names
        self.row_of = {key: row for row, key in enumerate(keys.tolist())}

    def detect(self, batched_inputs: list[dict], device: torch.device) -> list[Instances]:
        """See :meth:`Detector.detect`."""
        results = []
        for x in batched_inputs:
            key = os.path.basename(x.get("file_name", "")) if self.by_name else x.get("image_id")
            if key not in self.row_of:
                raise ValueError(
                    f"{_KEY}: {self.path!r} has no detections for the image {key!r}. A predictions "
                    "file serves the evaluation on its own test set; use a detector otherwise."
                )
            rows = slice(*self.predictions.det_offsets[self.row_of[key] :][:2])
            height, width = x["image"].shape[-2:]
            scale = np.array([width / x["width"], height / x["height"]] * 2)
            boxes = torch.as_tensor(self.predictions.boxes[rows] * scale, dtype=torch.float32)
            scores = torch.as_tensor(self.predictions.scores[rows], dtype=torch.float32)
            found = Instances((height, width), pred_boxes=Boxes(boxes), scores=scores)
            results.append(found.to(device))
        return results


def build_detector(cfg: CfgNode) -> Detector:
    """Builds ``MODEL.TWO_STAGE.DETECTOR``.

    Raises:
        FileNotFoundError: ``DETECTOR`` or ``DETECTOR_WEIGHTS`` names a file that does not exist.
        ValueError: The detector or its weights are unknown or cannot be downloaded.
    """
    two = cfg.MODEL.TWO_STAGE
    source, _, name = two.DETECTOR.partition("/")
    initial = two.DETECTOR_WEIGHTS if not cfg.MODEL.WEIGHTS else ""
    if source == "predictions":
        return DetectionsOfFile(name)
    if source == "torchvision":
        net = _torchvision_net(name, two.DETECTOR_CLASSES + 1, initial)
        if getattr(net.transform, "fixed_size", None) is None:  # SSD has one size
            net.transform.min_size = (cfg.INPUT.MIN_SIZE_TEST or 800,)
            net.transform.max_size = cfg.INPUT.MAX_SIZE_TEST or 1333
        owner = getattr(net, "roi_heads", net)
        if hasattr(owner, "score_thresh"):  # RoI heads hold the threshold of two-stage detectors
            owner.score_thresh = two.SCORE_THRESH
        return TorchvisionDetector(net, is_bgr=cfg.INPUT.FORMAT == "BGR")
    if two.DETECTOR not in META_ARCH_REGISTRY:
        known = sorted(key for key, _ in META_ARCH_REGISTRY)
        raise ValueError(
            f"{_KEY} is {two.DETECTOR!r}; it must be 'torchvision/<name>', 'predictions/<file>' or "
            f"one of {known}."
        )
    inner = cfg.clone()
    inner.defrost()
    inner.MODEL.META_ARCHITECTURE = two.DETECTOR
    inner.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or initial
    inner.MODEL.ROI_HEADS.NUM_CLASSES = inner.MODEL.RETINANET.NUM_CLASSES = two.DETECTOR_CLASSES
    net = META_ARCH_REGISTRY.get(two.DETECTOR)(inner)
    if initial.endswith(".pkl"):  # of Detectron2's model zoo
        DetectionCheckpointer(net).load(initial)
    elif initial:
        _load(net, initial, two.DETECTOR)
    return Detectron2Detector(net)


def _torchvision_net(name: str, num_classes: int, weights: str) -> nn.Module:
    known = torchvision.models.list_models(torchvision.models.detection)
    if name not in known:
        raise ValueError(f"{_KEY} is 'torchvision/{name}'; torchvision has {', '.join(known)}.")
    if weights != "coco":
        net = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes
        )
        if weights:
            _load(net, weights, f"torchvision/{name}")
        return net
    try:
        return torchvision.models.get_model(name, weights="DEFAULT", num_classes=num_classes)
    except OSError as error:
        raise ValueError(
            f"{_WEIGHTS} 'coco' could not be downloaded: {error}. Without a network, give the path "
            "of a state dict."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"MODEL.TWO_STAGE.DETECTOR_CLASSES is {num_classes - 1}; the COCO weights of "
            "torchvision have 90."
        ) from error


def _load(net: nn.Module, path: str, name: str) -> None:
    """Loads a state dict; rows of training identities may differ."""
    found, own = read_weights(local_file(path, _WEIGHTS)), net.state_dict()
    per_identity = {
        f"{module}.{buffer}".lstrip(".")
        for module, part in net.named_modules()
        for buffer in getattr(part, "identity_buffers", ())
    }
    wrong = [k for k, v in own.items() if k not in found or found[k].shape != v.shape]
    wrong += [k for k in found if k not in own]
    wrong = [k for k in wrong if k not in per_identity]
    if wrong:
        raise ValueError(
            f"{_WEIGHTS} {path!r} does not fit {name!r} with DETECTOR_CLASSES: {len(wrong)} "
            f"weights are missing, left over or have another shape, the first is {wrong[0]}."
        )
    fits = {k: v for k, v in found.items() if k in own and own[k].shape == v.shape}
    net.load_state_dict(fits, strict=False)
