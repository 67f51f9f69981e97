# SPDX-License-Identifier: Apache-2.0
"""The two-stage baseline: detect persons, then embed each crop."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn

from person_search.modeling import OIMLoss, run_by_size
from twostage.detectors import Detector, build_detector
from twostage.reid import build_reid


@META_ARCH_REGISTRY.register()
class TwoStage(nn.Module):
    """Detector and re-ID network with separate weights; trained together, or used as they are."""

    @configurable
    def __init__(
        self,
        *,
        detector: Detector,
        reid: nn.Module,
        oim: OIMLoss | None,
        train_detector: bool,
        train_reid: bool,
        score_thresh: float,
        nms_thresh: float,
        max_detections: int,
    ) -> None:
        """Initializes the model.

        Args:
            detector: First stage.
            reid: Second stage, with the interface of :class:`twostage.reid.CropEmbedder`.
            oim: Loss of the embedding; None where no identities are known, as in a search.
            train_detector: Whether the detector is trained.
            train_reid: Whether the re-ID network is trained; its projection always is.
            score_thresh: Lowest score of a detection.
            nms_thresh: Highest IoU of two detections.
            max_detections: Greatest number of detections in an image.
        """
        super().__init__()
        self.detector, self.reid, self.oim = detector, reid, oim
        self.train_detector = train_detector
        fixed = {detector: not train_detector, reid.net: not train_reid}
        self._fixed = [part.requires_grad_(False) for part, is_fixed in fixed.items() if is_fixed]
        self.embed_dim = reid.embed_dim  # of the model card
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.max_detections = max_detections

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Returns the arguments of ``__init__`` for a config."""
        two, reid = cfg.MODEL.TWO_STAGE, build_reid(cfg)
        oim = None
        if cfg.MODEL.REID.NUM_PIDS:
            oim = OIMLoss(
                cfg.MODEL.REID.NUM_PIDS, reid.embed_dim, two.QUEUE_SIZE, scale=1 / two.TEMPERATURE
            )
        return {
            "detector": build_detector(cfg),
            "reid": reid,
            "oim": oim,
            "train_detector": two.TRAIN_DETECTOR,
            "train_reid": two.TRAIN_REID,
            "score_thresh": two.SCORE_THRESH,
            "nms_thresh": two.NMS_THRESH,
            "max_detections": two.MAX_DETECTIONS,
        }

    @classmethod
    def part_weights(cls, cfg: CfgNode) -> dict[str, str]:
        """Returns what :class:`person_search.interface.LoadsParts` asks for."""
        two = cfg.MODEL.TWO_STAGE
        is_file = two.DETECTOR.startswith("predictions/")
        return {
            "MODEL.TWO_STAGE.DETECTOR_WEIGHTS": two.DETECTOR if is_file else two.DETECTOR_WEIGHTS,
            "MODEL.TWO_STAGE.REID_WEIGHTS": two.REID_WEIGHTS,
        }

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.reid.parameters()).device

    def train(self, mode: bool = True) -> "TwoStage":
        """Sets the mode; parts that are not trained stay in eval mode."""
        super().train(mode)
        for part in self._fixed:
            part.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Returns losses in training mode, predictions per image in eval mode."""
        if not self.training:
            return self.inference(batched_inputs)
        targets = [x["instances"] for x in batched_inputs]
        losses = self.detector.losses(batched_inputs, self.device) if self.train_detector else {}
        embedded = self._embed(batched_inputs, [t.gt_boxes.tensor for t in targets])
        if self.oim is not None:
            pids = torch.cat([t.gt_pids for t in targets]).to(self.device)
            losses["loss_oim"] = self.oim(embedded, pids)
        return losses

    @torch.no_grad()
    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """Detects and embeds all persons, or embeds the persons in given boxes.

        Args:
            batched_inputs: One dict per image: ``image``, ``height``, ``width`` and optionally
                ``queries``.
            detected_instances: Boxes (``pred_boxes``, pixels of the input image) to embed instead
                of detecting.
            do_postprocess: Whether boxes are scaled to the original image.

        Returns:
            ``instances`` and ``query_feats`` of each image, or the instances alone without
            postprocessing.
        """
        results = detected_instances or run_by_size(
            self._detect, batched_inputs, size_divisibility=0
        )
        results = [x.to(self.device) for x in results]
        embedded = self._embed(batched_inputs, [x.pred_boxes.tensor for x in results])
        for instances, feats in zip(
            results, embedded.split([len(x) for x in results]), strict=True
        ):
            instances.reid_feats = feats
        if not do_postprocess:
            return results
        outputs = []
        for x, instances in zip(batched_inputs, results, strict=True):
            height, width = x.get("height"), x.get("width")
            size = (height or instances.image_size[0], width or instances.image_size[1])
            output = {"instances": detector_postprocess(instances, *size)}
            if "queries" in x:
                output["query_feats"] = self._embed([x], [x["queries"].pred_boxes.tensor])
            outputs.append(output)
        return outputs

    def _detect(self, batched_inputs: list[dict]) -> list[Instances]:
        results = []
        for found in self.detector.detect(batched_inputs, self.device):
            found.pred_classes = torch.zeros_like(found.scores, dtype=torch.int64)
            if not self.detector.is_final:
                found = found[(found.scores > self.score_thresh) & found.pred_boxes.nonempty()]
                boxes, classes = found.pred_boxes.tensor, found.pred_classes
                keep = batched_nms(boxes, found.scores, classes, self.nms_thresh)
                found = found[keep[: self.max_detections]]
            results.append(found)
        return results

    def _embed(self, batched_inputs: list[dict], boxes: list[Tensor]) -> Tensor:
        images = [x["image"].to(self.device) for x in batched_inputs]
        return self.reid(images, [b.to(self.device) for b in boxes])
