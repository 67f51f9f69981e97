# SPDX-License-Identifier: Apache-2.0
"""The first stage: detectors of torchvision and of Detectron2 behind one interface."""

from pathlib import Path

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from person_search.utils.weight_files import read_weights

_KEY = "MODEL.TWO_STAGE.DETECTOR"
_PERSON_LABEL = 1
"""Label of a person in COCO, and of the only class in a torchvision detector of two classes."""


class TorchvisionDetector(nn.Module):
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
        """Returns the losses of a training batch, named ``loss_*``."""
        targets = []
        for x in batched_inputs:
            boxes = x["instances"].gt_boxes.tensor.to(device)
            labels = torch.full((len(boxes),), _PERSON_LABEL, dtype=torch.int64, device=device)
            targets.append({"boxes": boxes, "labels": labels})
        losses = self.net(self._images(batched_inputs, device), targets)
        return {f"loss_det_{name.removeprefix('loss_')}": value for name, value in losses.items()}

    def detect(self, batched_inputs: list[dict], device: torch.device) -> list[Instances]:
        """Returns ``pred_boxes`` and ``scores`` of each image, in the frame of the input."""
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


class Detectron2Detector(nn.Module):
    """A meta-architecture of Detectron2 such as ``GeneralizedRCNN``, with one class.

    Args:
        net: Model with ``forward`` for training and ``inference`` for testing.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def losses(self, batched_inputs: list[dict], device: torch.device) -> dict[str, Tensor]:
        """Returns the losses of a training batch, named ``loss_*``."""
        losses = self.net(batched_inputs)
        return {f"loss_det_{name.removeprefix('loss_')}": value for name, value in losses.items()}

    def detect(self, batched_inputs: list[dict], device: torch.device) -> list[Instances]:
        """Returns ``pred_boxes`` and ``scores`` of each image, in the frame of the input."""
        found = self.net.inference(batched_inputs, do_postprocess=False)
        persons = [x[x.pred_classes == 0] for x in found]
        return [Instances(x.image_size, pred_boxes=x.pred_boxes, scores=x.scores) for x in persons]


def build_detector(cfg: CfgNode) -> TorchvisionDetector | Detectron2Detector:
    """Builds ``MODEL.TWO_STAGE.DETECTOR``.

    Raises:
        FileNotFoundError: ``DETECTOR_WEIGHTS`` names a file that does not exist.
        ValueError: The detector or its weights are unknown or cannot be downloaded.
    """
    two = cfg.MODEL.TWO_STAGE
    source, _, name = two.DETECTOR.rpartition("/")
    if source not in ("", "torchvision") or (source == "" and name not in META_ARCH_REGISTRY):
        known = sorted(key for key, _ in META_ARCH_REGISTRY)
        raise ValueError(
            f"{_KEY} is {two.DETECTOR!r}; it must be 'torchvision/<name>' or one of {known}."
        )
    if source == "torchvision":
        initial = two.DETECTOR_WEIGHTS if not cfg.MODEL.WEIGHTS else ""
        net = _torchvision_net(name, initial)
        if getattr(net.transform, "fixed_size", None) is None:  # SSD has one size
            net.transform.min_size = (cfg.INPUT.MIN_SIZE_TEST or 800,)
            net.transform.max_size = cfg.INPUT.MAX_SIZE_TEST or 1333
        owner = getattr(net, "roi_heads", net)
        if hasattr(owner, "score_thresh"):  # RoI heads hold the threshold of two-stage detectors
            owner.score_thresh = two.SCORE_THRESH
        return TorchvisionDetector(net, is_bgr=cfg.INPUT.FORMAT == "BGR")
    inner = cfg.clone()
    inner.defrost()
    inner.MODEL.META_ARCHITECTURE = name
    inner.MODEL.ROI_HEADS.NUM_CLASSES = inner.MODEL.RETINANET.NUM_CLASSES = 1
    return Detectron2Detector(META_ARCH_REGISTRY.get(name)(inner))


def _torchvision_net(name: str, weights: str) -> nn.Module:
    known = torchvision.models.list_models(torchvision.models.detection)
    if name not in known:
        raise ValueError(f"{_KEY} is 'torchvision/{name}'; torchvision has {', '.join(known)}.")
    if weights == "coco":
        try:
            return torchvision.models.get_model(name, weights="DEFAULT")
        except OSError as error:
            raise ValueError(
                f"MODEL.TWO_STAGE.DETECTOR_WEIGHTS 'coco' could not be downloaded: {error}. "
                "Without a network, give the path of a state dict."
            ) from error
    if not weights:
        return torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=2
        )
    if not Path(weights).is_file():
        raise FileNotFoundError(f"MODEL.TWO_STAGE.DETECTOR_WEIGHTS {weights!r} does not exist.")
    state = read_weights(weights)
    classes = 2 if not any(value.shape[:1] == (91,) for value in state.values()) else 91
    net = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes
    )
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.TWO_STAGE.DETECTOR_WEIGHTS {weights!r} does not fit 'torchvision/{name}': "
            f"{str(error).splitlines()[1].strip()}"
        ) from error
    return net
