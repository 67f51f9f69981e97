# SPDX-License-Identifier: Apache-2.0
"""A trained model for search: images and boxes in, detections and embeddings out.

Shape shorthand: Q boxes of one image, D embedding dimension.
Boxes are XYXY pixels of the upright image (EXIF orientation applied).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from person_search.config import config_identity
from person_search.data import build_mapper
from person_search.engine import PersonSearchTrainer, keys_without_weights
from person_search.modeling.optimize import choose_precision, device_of, optimize_for_inference
from person_search.search.identity import ModelIdentity
from person_search.search.images import clip_box, read_image, shrink
from person_search.utils.model_card import ModelCard

MIN_SIDE = 2.0
"""Minimum side of a detected box in pixels; see :meth:`PersonEmbedder.detect`."""


class _ModelInput(T.AugInput):
    """Shrinks images faster than the transforms of Detectron2 do."""

    image: np.ndarray

    def transform(self, tfm: T.Transform) -> None:
        height, width = self.image.shape[:2]
        if (
            isinstance(tfm, T.ResizeTransform)
            and tfm.interp == Image.Resampling.BILINEAR
            and tfm.new_h * tfm.new_w < height * width
        ):
            self.image = shrink(self.image, tfm.new_h, tfm.new_w)
        else:
            super().transform(tfm)


class PersonEmbedder:
    """Detects and embeds persons in images with a person search model.

    Args:
        model: Model with the interface of docs/data_flow.md; set to eval mode.
        image_format: Channel order of the model, ``cfg.INPUT.FORMAT``.
        min_size: Shorter side to which images are resized.
        max_size: Maximum of the longer side.
        score_thresh: Minimum score of the detections that enter a gallery.
        augmentations: Replaces the resizing, for example by the augmentations of a mapper.
        config: Further settings that the embeddings depend on, see :class:`ModelIdentity`.
        precision: See :func:`person_search.modeling.optimize.optimize_for_inference`.
        card: Model card of the weights; None if they have none.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_format: str = "BGR",
        min_size: int = 800,
        max_size: int = 1333,
        score_thresh: float = 0.5,
        augmentations: T.AugmentationList | None = None,
        config: Mapping[str, Any] | None = None,
        precision: str = "float32",
        card: ModelCard | None = None,
    ) -> None:
        self.model = optimize_for_inference(model.eval(), precision)
        self.device = device_of(model)
        dtype = choose_precision(precision, self.device, model)
        self.precision = str(dtype).removeprefix("torch.")
        self.image_format = image_format
        resize = T.ResizeShortestEdge([min_size, min_size], max_size)
        self.augmentations = augmentations or T.AugmentationList([resize])
        self.score_thresh = score_thresh
        self.card = card
        self._config = {
            **(config or {}),
            "INPUT.FORMAT": image_format,
            "INPUT.MIN_SIZE_TEST": min_size,
            "INPUT.MAX_SIZE_TEST": max_size,
        }
        # of the weights as they were trained, which the optimization folds and rounds
        self._identity = ModelIdentity.of(model, self._config, {})

    @classmethod
    def from_config(cls, cfg: CfgNode, weights: str = "") -> "PersonEmbedder":
        """Builds the model of a config and loads its weights.

        Args:
            cfg: Config of the model.
            weights: Checkpoint file, an address of
                :func:`person_search.utils.weight_files.fetch_weights`, or a model of
                person-search export (``.onnx``). Default:
                ``cfg.MODEL.WEIGHTS``.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If none is given, or it is damaged or belongs to another model.
        """
        path = weights or cfg.MODEL.WEIGHTS
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = path
        if missing := keys_without_weights(cfg):
            raise ValueError(
                f"no weights are given (--weights, or {' and '.join(missing)} in the config): an "
                "untrained model detects no person."
            )
        if path and "://" not in path and not os.path.isfile(path):  # before the model is built
            raise FileNotFoundError(f"the weight file '{path}' does not exist.")
        if path.endswith(".onnx"):
            from person_search.search.onnx_embedder import OnnxEmbedder

            return OnnxEmbedder(path, cfg.TEST.PERSON_SEARCH.SCORE_THRESH)
        model = build_model(cfg)
        checkpointer = PersonSearchTrainer.build_checkpointer(cfg, model)
        if path:
            checkpointer.load(path, checkpointables=[], need_whole=True)
        return cls(
            model,
            image_format=cfg.INPUT.FORMAT,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            augmentations=build_mapper(cfg, is_train=False).augmentations,
            score_thresh=cfg.TEST.PERSON_SEARCH.SCORE_THRESH,
            config=config_identity(cfg),
            precision=cfg.TEST.PRECISION,
            card=checkpointer.loaded_card,
        )

    @cached_property
    def identity(self) -> ModelIdentity:
        """Identity of the model.

        Low precision counts as a setting of the detection: in a gallery, all images must have the
        same, but a query of another precision finds the same persons (docs/deployment.md).
        """
        detection: dict[str, Any] = {"TEST.PERSON_SEARCH.SCORE_THRESH": self.score_thresh}
        if self.precision != "float32":
            detection["TEST.PRECISION"] = self.precision
        return replace(self._identity, detection=detection)

    @cached_property
    def embed_dim(self) -> int:
        """Embedding dimension D, found by embedding a box of an empty image."""
        return self.embed_in(np.zeros((64, 64, 3), np.uint8), [(0, 0, 32, 64)]).shape[1]

    def embed(self, path: str | os.PathLike, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """Embeds the persons in given boxes of an image.

        Args:
            path: Image file.
            boxes: Boxes (Q, 4).

        Returns:
            Embeddings (Q, D) float32 of unit length; (0, D) for no boxes.

        Raises:
            FileNotFoundError: If the image does not exist.
            BadImageError: If the image is unreadable.
            ValueError: If a box is invalid or does not overlap the image.
        """
        return self.embed_in(read_image(path, self.image_format), boxes)

    @torch.no_grad()
    def embed_in(self, image: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """Like :meth:`embed`, for an image (H, W, 3) uint8 in ``image_format``."""
        height, width = image.shape[:2]
        clipped = np.array([clip_box(box, width, height) for box in boxes]).reshape(-1, 4)
        item, transform = self.model_input(image)
        scaled = torch.as_tensor(transform.apply_box(clipped), dtype=torch.float32)
        given = Instances(
            tuple(item["image"].shape[1:]),
            pred_boxes=Boxes(scaled),
            pred_classes=torch.zeros(len(scaled), dtype=torch.int64),
        )
        (result,) = self.model.inference([item], detected_instances=[given], do_postprocess=False)
        return result.reid_feats.cpu().numpy()

    def detect(self, image: np.ndarray | str | os.PathLike) -> Instances:
        """Detects and embeds all persons above the score threshold.

        Boxes with a side below ``MIN_SIDE`` are dropped: a sparse detector can shrink a box to a
        line, which shows no person.

        Args:
            image: Array (H, W, 3) uint8 in ``image_format``, or an image file.

        Returns:
            Instances on the CPU in the frame of the image, with ``reid_feats``.

        Raises:
            FileNotFoundError: If the image file does not exist.
            BadImageError: If the image file is unreadable.
        """
        if not isinstance(image, np.ndarray):
            image = read_image(image, self.image_format)
        return self.detect_prepared([self.prepare(image)])[0]

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Returns the input of :meth:`detect_prepared` for an image (H, W, 3) uint8."""
        item, _ = self.model_input(image)
        return {**item, "height": image.shape[0], "width": image.shape[1]}

    @torch.no_grad()
    def detect_prepared(self, items: list[dict[str, Any]]) -> list[Instances]:
        """Like :meth:`detect`, for several images at once.

        Args:
            items: From :meth:`prepare`; may be empty.

        Returns:
            Instances of each image.
        """
        results = []
        for output in self.model(items) if items else []:
            instances = output["instances"].to("cpu")
            large = instances.pred_boxes.nonempty(MIN_SIDE)
            results.append(instances[(instances.scores >= self.score_thresh) & large])
        return results

    def model_input(self, image: np.ndarray) -> tuple[dict, T.Transform]:
        """Returns the model input for an image, and the transform between the two."""
        aug_input = _ModelInput(image)
        transform = self.augmentations(aug_input)
        resized = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {"image": resized}, transform
