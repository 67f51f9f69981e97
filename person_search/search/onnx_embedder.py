# SPDX-License-Identifier: Apache-2.0
"""Search with a model in an ONNX file: the interface of ``PersonEmbedder`` for ``OnnxModel``."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances

from person_search.search.embedder import MIN_SIDE, PersonEmbedder
from person_search.search.identity import ModelIdentity
from person_search.search.images import clip_box, shrink
from person_search.search.onnx_model import OnnxModel, OnnxModelError
from person_search.utils.model_card import ModelCard


class OnnxEmbedder(PersonEmbedder):
    """Detects and embeds persons in images with ONNX Runtime.

    Its embeddings may be mixed with those of the exported model, whose identity it has.

    Args:
        path: File written by person-search export.
        score_thresh: Minimum score of the detections that enter a gallery.

    Raises:
        OnnxModelError: If the file is unusable, see :class:`OnnxModel`.
    """

    model: Any

    def __init__(self, path: str | os.PathLike, score_thresh: float) -> None:
        # one thread for each image: indexing runs several images at once
        self.model = OnnxModel(path, threads=1, shrink=shrink)
        if self.model.features:
            raise OnnxModelError(
                f"'{path}' holds the heads alone, which take activations instead of images; export "
                "the model without --heads-only."
            )
        self.image_format = self.model.image_format
        self.score_thresh = score_thresh
        card = self.model.card.get("model_card")
        self.card = ModelCard.from_json(card) if card else None
        self.device, self.precision = torch.device("cpu"), self.model.card["precision"]
        self._identity = ModelIdentity.from_json(self.model.card["identity"])

    def embed_in(self, image: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """See :meth:`PersonEmbedder.embed_in`."""
        height, width = image.shape[:2]
        return self.model.embed(image, [clip_box(box, width, height) for box in boxes])

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """See :meth:`PersonEmbedder.prepare`."""
        resized = np.moveaxis(self.model.resize(image), 2, 0)
        return {"image": resized, "height": image.shape[0], "width": image.shape[1]}

    def detect_prepared(self, items: list[dict[str, Any]]) -> list[Instances]:
        """See :meth:`PersonEmbedder.detect_prepared`."""
        results = []
        for item in items:
            boxes, scores, reid_feats = self.model.detect_in(item["image"])
            found = Instances(
                item["image"].shape[1:],
                pred_boxes=Boxes(torch.from_numpy(boxes.astype(np.float32))),
                scores=torch.from_numpy(scores),
                pred_classes=torch.zeros(len(scores), dtype=torch.int64),
                reid_feats=torch.from_numpy(reid_feats),
            )
            found = detector_postprocess(found, item["height"], item["width"])
            large = found.pred_boxes.nonempty(MIN_SIDE)
            results.append(found[(found.scores >= self.score_thresh) & large])
        return results
