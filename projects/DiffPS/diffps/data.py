# SPDX-License-Identifier: Apache-2.0
"""Mapper of DiffPS: resizes images for the diffusion model and computes their digests.

Sizes are (height, width) in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from torch.nn import functional as F

from diffps.latents import image_digest
from person_search.data import MAPPER_REGISTRY, PersonSearchMapper
from person_search.utils.sizes import SIZE_MULTIPLE, budget_size

RESIZE_MODES = ("fixed", "budget", "shortest_edge")


class BilinearResize(T.Transform):
    """Bilinear resizing without antialiasing, as in the release, to float32 pixels."""

    def __init__(self, old_size: Sequence[int], new_size: Sequence[int]) -> None:
        super().__init__()
        self.old_size, self.new_size = tuple(old_size), tuple(new_size)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(h, w, C) -> (new h, new w, C) float32."""
        image = torch.from_numpy(np.array(img, np.float32)).permute(2, 0, 1)[None]
        image = F.interpolate(image, self.new_size, mode="bilinear", align_corners=False)
        return image[0].permute(1, 2, 0).contiguous().numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scales (n, 2) float xy coordinates, each axis by its own factor."""
        scale = [new / old for old, new in zip(self.old_size, self.new_size, strict=True)]
        return coords * np.array(scale[::-1], coords.dtype)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Is not supported."""
        raise NotImplementedError("person search has no masks")


class ResizeTo(T.Augmentation):
    """Resizes every image to the same size."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def get_transform(self, image: np.ndarray) -> BilinearResize:
        """Returns the transform of one image."""
        return BilinearResize(image.shape[:2], self.size)

    def describe(self) -> dict[str, Any]:
        """Returns the rule as plain types, for the card of an exported model."""
        return {"size": self.size}


class ResizeToBudget(T.Augmentation):
    """Resizes to the largest size of about the same aspect ratio within a number of pixels.

    Both sides become multiples of 64, so the ratio changes by a few percent and nothing is padded.
    """

    def __init__(self, max_pixels: int) -> None:
        super().__init__()
        self.max_pixels = max_pixels

    def get_transform(self, image: np.ndarray) -> BilinearResize:
        """Returns the transform of one image."""
        return BilinearResize(image.shape[:2], budget_size(image.shape[:2], self.max_pixels))

    def describe(self) -> dict[str, Any]:
        """See :meth:`ResizeTo.describe`."""
        return {"max_pixels": self.max_pixels}


@MAPPER_REGISTRY.register()
class DiffPSMapper(PersonSearchMapper):
    """The shared mapper with the sizes of ``MODEL.DIFFPS.INPUT``.

    It adds ``image_digest``, the key of caches and of seeded noise, where the backbone needs it,
    so that the worker processes compute it.

    Args:
        is_train: Whether images are mapped for training.
        add_digest: Whether to compute ``image_digest``.
        **kwargs: Arguments of :class:`PersonSearchMapper`.
    """

    @configurable
    def __init__(self, is_train: bool, *, add_digest: bool, **kwargs: Any) -> None:
        super().__init__(is_train, **kwargs)
        self.add_digest = add_digest

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Returns the arguments of the constructor."""
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = replace_resize(
            arguments["augmentations"], cfg.MODEL.DIFFPS.INPUT.RESIZE, cfg.MODEL.DIFFPS.INPUT.SIZE
        )
        backbone = cfg.MODEL.DIFFPS.BACKBONE
        arguments["add_digest"] = backbone.CACHE.KIND != "none" or backbone.NOISE == "seeded"
        return arguments

    @classmethod
    def largest_training_image(cls, cfg: CfgNode) -> tuple[int, int, int]:
        """Returns the size of :class:`BilinearResize`, whose pixels are float32."""
        if cfg.MODEL.DIFFPS.INPUT.RESIZE == "shortest_edge":
            return super().largest_training_image(cfg)
        height, width = cfg.MODEL.DIFFPS.INPUT.SIZE
        return height, width, 4

    def __call__(self, record: dict) -> dict | None:
        """Maps one record, see :class:`PersonSearchMapper`."""
        output = super().__call__(record)
        if output is not None and self.add_digest:
            output["image_digest"] = image_digest(output["image"])
        return output


def replace_resize(
    augmentations: list[T.Augmentation], mode: str, size: Sequence[int]
) -> list[T.Augmentation]:
    """Replaces Detectron2's resizing by that of DiffPS.

    Raises:
        ValueError: If the mode is unknown, or a side is not a positive multiple of 64.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"MODEL.DIFFPS.INPUT.RESIZE is {mode!r}; allowed: {RESIZE_MODES}")
    if len(size) != 2 or any(side <= 0 or side % SIZE_MULTIPLE for side in size):
        raise ValueError(
            f"MODEL.DIFFPS.INPUT.SIZE is {list(size)}; it must be a height and a width that are "
            f"multiples of {SIZE_MULTIPLE}."
        )
    if mode == "shortest_edge":
        return augmentations
    new = ResizeTo(size) if mode == "fixed" else ResizeToBudget(size[0] * size[1])
    return [new if isinstance(a, T.ResizeShortestEdge) else a for a in augmentations]
