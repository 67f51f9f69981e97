# SPDX-License-Identifier: Apache-2.0
"""Evaluates whether the attention of a word finds its object, with annotated boxes.

Shape shorthand: I images, (h, w) cells of a map, S pixels per cell, E heads.

*Pointing accuracy*: share of the images with boxes in which the peak of the map lies in a box.
*Energy*: mean of the map inside the boxes over its mean outside, averaged geometrically over the
images. By chance the first is the share of cells inside boxes, the second 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from torch import Tensor
from torch.nn import functional as F

from diffps.hooks import find_layers, list_layers
from diffps.latents import LatentNoiser, encode_moments
from diffps.loading import DiffusionFolder
from diffps.prior.captions import PART_SPANS, PERSON
from diffps.text import encode_text
from diffps.unet_forward import UNetFeatures
from person_search.utils.sizes import budget_size

Box = Sequence[float]
"""(x1, y1, x2, y2) in pixels of the model's input."""


@dataclass
class Pointing:
    """Sums over images; images without a cell inside or outside of boxes are ignored."""

    images: int = 0
    hits: int = 0
    share: float = 0.0
    log_energy: float = 0.0

    def add(self, attention: np.ndarray, boxes: Sequence[Box], stride: float) -> None:
        """Adds one image.

        Args:
            attention: Map without negative values, (h, w).
            boxes: Boxes of the object.
            stride: S.
        """
        inside = cells_inside(attention.shape, boxes, stride)
        if not inside.any() or inside.all():
            return
        self.images += 1
        self.hits += bool(inside.flat[int(attention.argmax())])
        self.share += float(inside.mean())
        tiny = 1e-12
        ratio = (attention[inside].mean() + tiny) / (attention[~inside].mean() + tiny)
        self.log_energy += math.log(ratio)

    @property
    def accuracy(self) -> float:
        """Pointing accuracy in percent; NaN without images."""
        return 100 * self.hits / self.images if self.images else math.nan

    @property
    def chance(self) -> float:
        """Pointing accuracy of a random cell in percent; NaN without images."""
        return 100 * self.share / self.images if self.images else math.nan

    @property
    def energy(self) -> float:
        """Attention inside over outside; NaN without images."""
        return math.exp(self.log_energy / self.images) if self.images else math.nan


def cells_inside(shape: tuple[int, int], boxes: Sequence[Box], stride: float) -> np.ndarray:
    """Returns the cells whose center lies in a box, (h, w) bool."""
    inside = np.zeros(shape, bool)
    y = (np.arange(shape[0])[:, None] + 0.5) * stride
    x = (np.arange(shape[1])[None, :] + 0.5) * stride
    for x1, y1, x2, y2 in boxes:
        inside |= (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return inside


def part_boxes(boxes: Sequence[Box], word: str) -> list[Box]:
    """Returns the boxes of a part of each person, by its usual place, or of whole persons."""
    top, bottom = PART_SPANS.get(word, (0.0, 1.0))
    return [(x1, y1 + top * (y2 - y1), x2, y1 + bottom * (y2 - y1)) for x1, y1, x2, y2 in boxes]


@dataclass
class AnnotatedImage:
    """An image as the model receives it, with its annotated persons.

    Attributes:
        image: (3, H, W) float in [-1, 1], RGB, sides multiples of 64.
        boxes: Boxes of all persons, with or without a known identity.
    """

    image: Tensor
    boxes: list[Box] = field(default_factory=list)


def read_annotated_image(record: dict, max_pixels: int = 256 * 320) -> AnnotatedImage:
    """Reads the image of a dataset record and resizes it as ``DiffPSMapper`` does.

    Args:
        record: Detectron2's dict with ``file_name`` and ``annotations``.
        max_pixels: Maximum area of the resized image.
    """
    image = torch.from_numpy(read_image(record["file_name"], "RGB").copy())
    height, width = image.shape[:2]
    new = budget_size((height, width), max_pixels)
    image = image.permute(2, 0, 1)[None].float()
    image = F.interpolate(image, new, mode="bilinear", align_corners=False)[0]
    factors = np.array([new[1] / width, new[0] / height] * 2)
    boxes = [
        BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in record["annotations"]
    ]
    return AnnotatedImage(image / 127.5 - 1, [tuple(np.array(box) * factors) for box in boxes])


class AttentionMaps:
    """Cross-attention maps of single-word prompts, per layer and head.

    Args:
        model: Folder in diffusers format.
        layers: Places such as ``u3r0``.
        words: Prompts.
        timestep: Timestep given to the UNet; the latent is scaled for it.
        noise: Noise added to the latent, see :class:`diffps.latents.LatentNoiser`.
    """

    def __init__(
        self,
        model: str,
        layers: Sequence[str],
        words: Sequence[str] = (PERSON,),
        timestep: int = 0,
        noise: str = "none",
    ) -> None:
        folder = DiffusionFolder(model, local_files_only=True)
        self.vae = folder.load_vae(torch.float32)
        self.noiser = LatentNoiser(
            folder.load_alphas_cumprod(), timestep, noise, False, self.vae.config.scaling_factor
        )
        self.passes: dict[str, UNetFeatures] = {}
        for word in words:
            unet = folder.load_unet(torch.float32, "any")
            names = [f"{place}_xq" for place in layers]
            self.layers = find_layers(names, list_layers(unet), "layers", ("xq",))
            text = encode_text(folder, word, map_word="")
            self.passes[word] = UNetFeatures(unet, self.layers, text, timestep=timestep)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, dict[str, Tensor]]:
        """Computes the maps.

        Args:
            images: (I, 3, H, W) in [-1, 1].

        Returns:
            Word -> place -> (I, E, h, w) probabilities.
        """
        keys = [str(index) for index in range(len(images))]
        latents = self.noiser(encode_moments(self.vae, images), keys)
        height, width = images.shape[2:]
        maps: dict[str, dict[str, Tensor]] = {}
        for word, features in self.passes.items():
            outputs = features(latents, (height, width))
            maps[word] = {
                layer.name.removesuffix("_xq"): features.head_maps(
                    layer, outputs[layer.name], features.text.token
                )
                for layer in self.layers
            }
        return maps


def measure(
    maps: AttentionMaps, images: Sequence[AnnotatedImage], batch: int = 8
) -> dict[tuple[str, str, str], Pointing]:
    """Evaluates all words, layers and heads.

    Args:
        maps: Attention to evaluate.
        images: Images of one size.
        batch: Images per batch.

    Returns:
        (word, place, head) -> result; the head is an index, or ``all`` for the mean of the heads.
    """
    results: dict[tuple[str, str, str], Pointing] = {}
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        for word, places in maps(torch.stack([x.image for x in some])).items():
            for place, values in places.items():
                whole = torch.cat([values, values.mean(1, keepdim=True)], dim=1).numpy()
                stride = some[0].image.shape[1] / whole.shape[2]
                for image, heads in zip(some, whole, strict=True):
                    boxes = part_boxes(image.boxes, word)
                    for index, head in enumerate(heads):
                        name = "all" if index == len(heads) - 1 else str(index)
                        result = results.setdefault((word, place, name), Pointing())
                        result.add(head, boxes, stride)
    return results
