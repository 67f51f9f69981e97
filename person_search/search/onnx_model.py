# SPDX-License-Identifier: Apache-2.0
"""Runs a model written by person-search export with ONNX Runtime and NumPy, without PyTorch.

    from person_search.search.onnx_model import OnnxModel

    model = OnnxModel("model.onnx")
    boxes, scores, feats = model.detect(bgr_image)  # (H, W, 3) uint8
    (query,) = model.embed(bgr_image, [[119, 44, 151, 160]])

Shape shorthand: N proposals, n detections, Q given boxes, D embedding dimension.
Boxes are XYXY pixels of the given image.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from person_search.utils.sizes import budget_size

FORMAT_VERSION = 2
KEY = "person_search"


class OnnxModelError(ValueError):
    """An ONNX file is unusable, or an image has a size outside of its bounds."""


class OnnxModel:
    """A person search model in an ONNX file. Safe to use from several threads.

    Args:
        path: File written by person-search export.
        threads: Threads of one inference; 0: as many as there are cores.
        shrink: Makes images smaller, faster than Pillow: (image, height, width) to an image.

    Raises:
        ModuleNotFoundError: If ONNX Runtime is not installed.
        FileNotFoundError: If the file does not exist.
        OnnxModelError: If the file is damaged, has no card, or is of another version.
    """

    thread_safe_inference = True

    def __init__(
        self,
        path: str | os.PathLike,
        threads: int = 0,
        shrink: Callable[[np.ndarray, int, int], np.ndarray] | None = None,
    ) -> None:
        self._shrink = shrink
        try:
            import onnxruntime
        except ModuleNotFoundError as e:
            raise ModuleNotFoundError(
                f"'{path}' is run by ONNX Runtime, which is not installed: "
                "pip install 'person-search[onnx]'."
            ) from e
        if not Path(path).is_file():
            raise FileNotFoundError(f"the model '{path}' does not exist.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # ONNX Runtime has no common base class for its errors
            reason = str(e).splitlines()[0]
            raise OnnxModelError(f"'{path}' is not a readable ONNX model: {reason}") from e
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise OnnxModelError(
                f"'{path}' has no metadata '{KEY}', so its settings are unknown; write it with "
                "'person-search export'."
            )
        self.card: dict[str, Any] = json.loads(text)
        if self.card.get("version") != FORMAT_VERSION:
            raise OnnxModelError(
                f"'{path}' has version {self.card.get('version')}; this program reads version "
                f"{FORMAT_VERSION}. Export the model again with 'person-search export'."
            )
        self.embed_dim: int = self.card["embed_dim"]
        self.image_format: str = self.card["image_format"]
        self._maps: list[str] = self.card["maps"]
        self._is_two_stage = self.card.get("method") == "DiffPS"
        # The file has two independent parts, and ONNX Runtime always computes both: the one that is
        # not needed gets the smallest input.
        self._unused: dict[str, np.ndarray] = {}
        for entry in self._session.get_inputs():
            dtype = np.int64 if "int64" in entry.type else np.float32
            shape = [side if isinstance(side, int) else 1 for side in entry.shape]
            self._unused[entry.name] = np.zeros(shape, dtype)
        side = self.card["divisor"]
        # Activations that the model takes instead of an image, with their channels and strides.
        self.features: dict[str, dict[str, int]] = self.card.get("features", {})
        for name, shape in self.features.items():
            cells = side // shape["stride"]
            self._unused[name] = np.zeros((1, shape["channels"], cells, cells), np.float32)

    def detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Detects persons.

        Args:
            image: Image (H, W, 3) uint8 in the channel order ``image_format``.

        Returns:
            Boxes (n, 4), scores (n,) and embeddings (n, D) of unit length, best first.

        Raises:
            OnnxModelError: If the image is larger than the model accepts, after resizing.
        """
        resized = self.resize(image)
        boxes, scores, feats = self.detect_in(np.moveaxis(resized, 2, 0))
        scale = np.tile(image.shape[1::-1] / np.array(resized.shape[1::-1]), 2)
        return (boxes * scale).astype(np.float32), scores, feats

    def detect_in(
        self, image: np.ndarray, image_id: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Like :meth:`detect`, for an image (3, h, w) in the size of the model.

        Args:
            image: Image and boxes are in this frame.
            image_id: Seed of the noise, together with that of the model.

        Returns:
            See :meth:`detect`.
        """
        maps, size = self._encode(image)
        if self._is_two_stage:
            return self._detect_regions(maps, size)
        card, dim = self.card, self.embed_dim
        schedule, random = card["schedules"]["detection"], self._noise(image_id)
        signal = random.normal(card["proposals"], 4 + dim)
        for index, t in enumerate(schedule["t"]):
            last = index == len(schedule["t"]) - 1
            noise = (
                random.normal(card["proposals"], 4 + dim)
                if card["noisy"] and not last
                else np.zeros_like(signal)
            )
            coefficients = [0.0, 0.0, 0.0] if last else schedule["coefficients"][index]
            boxes, scores, feats, signal = self._step(maps, size, signal, noise, t, coefficients)
        keep = scores > card["score_thresh"]
        boxes = boxes[keep].clip(0, np.tile(size[::-1], 2))
        scores, feats = scores[keep], feats[keep]
        keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
        boxes, scores, feats = boxes[keep], scores[keep], feats[keep]
        best = suppress(boxes, scores, card["nms_thresh"])[: card["max_detections"]]
        return boxes[best], scores[best], feats[best]

    def embed(self, image: np.ndarray, boxes: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Embeds the persons in given boxes.

        Args:
            image: Image (H, W, 3) uint8 in the channel order ``image_format``.
            boxes: Boxes (Q, 4).

        Returns:
            Embeddings (Q, D) of unit length.

        Raises:
            OnnxModelError: If the image is larger than the model accepts, after resizing.
        """
        resized = self.resize(image)
        scale = np.tile(resized.shape[1::-1] / np.array(image.shape[1::-1]), 2)
        return self.embed_in(np.moveaxis(resized, 2, 0), np.reshape(boxes, (-1, 4)) * scale)

    def embed_in(self, image: np.ndarray, boxes: np.ndarray, image_id: int = 0) -> np.ndarray:
        """Like :meth:`embed`, for an image (3, h, w) in the size of the model, and its boxes."""
        maps, size = self._encode(image)
        if self._is_two_stage:
            return self._embed_regions(maps, boxes)
        card, dim = self.card, self.embed_dim
        x1, y1, x2, y2 = (np.asarray(boxes, np.float64) / np.tile(size[::-1], 2)).T
        norm = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
        fixed = (card["snr_box"] * (2 * norm - 1)).astype(np.float32)
        schedule, results = card["schedules"]["query"], []
        for box in fixed:
            random, total = self._noise(image_id), np.zeros(dim, np.float32)
            for _ in range(card["query_draws"]):
                signal = np.concatenate([box[None], random.normal(1, dim)], axis=1)
                for index, t in enumerate(schedule["t"]):
                    last = index == len(schedule["t"]) - 1
                    noise = np.zeros_like(signal)
                    if card["noisy"] and not last:
                        noise = random.normal(1, 4 + dim)
                    coefficients = [0.0, 0.0, 0.0] if last else schedule["coefficients"][index]
                    *_, feats, following = self._step(maps, size, signal, noise, t, coefficients)
                    signal = np.concatenate([box[None], following[:, 4:]], axis=1)
                total = total + feats[0]
            results.append(total / np.linalg.norm(total))
        return np.stack(results) if results else np.zeros((0, dim), np.float32)

    def run_heads(
        self, features: Mapping[str, np.ndarray], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Like :meth:`detect_in`, for a file of the heads alone.

        Args:
            features: Activations of the backbone by the names in ``features``, (1, C, H, W) each.
            size: Height and width of the image without padding.

        Returns:
            See :meth:`detect`.
        """
        given, feeds = np.array(size, np.float32), {n: features[n] for n in self.features}
        return self._detect_regions(self._run(self._maps, {**feeds, "size": given}), given)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image (H, W, 3) as the model was tested.

        That is its shorter side, limited by the longer side, if ``resize`` of the card is None.
        """
        height, width = image.shape[:2]
        if rule := self.card.get("resize"):
            return bilinear(image, *rule.get("size") or budget_size((height, width), **rule))
        shorter, longest = self.card["min_size"], self.card["max_size"]
        if not shorter:
            return image
        scale = shorter / min(height, width)
        if max(height, width) * scale > longest:
            scale = longest / max(height, width)
        new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
        if self._shrink is not None and new_height * new_width < height * width:
            return self._shrink(image, new_height, new_width)
        resample = Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(image).resize((new_width, new_height), resample))

    def _noise(self, image_id: int) -> "TorchNoise":
        return TorchNoise(self.card["seed"] * 1_000_003 + image_id)

    def _encode(self, image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Computes the feature maps of an image (3, h, w); returns them and (h, w)."""
        if self.features:
            raise OnnxModelError(
                "the model holds the heads alone and takes the activations "
                f"{', '.join(self.features)} instead of an image. Export it without --heads-only."
            )
        divisor, largest = self.card["divisor"], self.card["max_side"]
        size = np.array(image.shape[1:])
        height, width = (int(side) for side in -(-size // divisor) * divisor)
        if max(height, width) > largest:
            raise OnnxModelError(
                f"the image has {size[1]} x {size[0]} pixels (width x height) after resizing; the "
                f"model was exported for sides up to {largest}. Export it with a larger --max-side."
            )
        padded = np.empty((1, 3, height, width), np.float32)
        padded[:] = np.array(self.card["pixel_mean"], np.float32)[:, None, None]
        padded[0, :, : size[0], : size[1]] = image
        cells = padded.reshape(1, 3, height // divisor, divisor, width // divisor, divisor)
        size = size.astype(np.float32)
        return self._run(self._maps, {"image": cells, "size": size}), size

    def _run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Computes outputs from the inputs that they depend on."""
        return self._session.run(outputs, {**self._unused, **feeds})

    def _detect_regions(
        self, maps: list[np.ndarray], size: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns boxes, scores and embeddings of a detector with two stages."""
        given = {f"{name}_in": value for name, value in zip(self._maps, maps, strict=True)}
        boxes, scores = self._run(["pred_boxes", "scores"], {**given, "size": size})
        return boxes, scores, self._embed_regions(maps, boxes)

    def _embed_regions(self, maps: list[np.ndarray], boxes: np.ndarray) -> np.ndarray:
        if not len(boxes):
            return np.zeros((0, self.embed_dim), np.float32)
        given = {"reid_in": maps[self._maps.index("reid")], "boxes": np.asarray(boxes, np.float32)}
        return self._run(["reid_feats"], given)[0]

    def _step(
        self,
        maps: list[np.ndarray],
        size: np.ndarray,
        signal: np.ndarray,
        noise: np.ndarray,
        t: int,
        coefficients: Sequence[float],
    ) -> list[np.ndarray]:
        """Returns boxes, scores, embeddings and the next signal of a denoising step."""
        feeds = {
            **{f"{name}_in": value for name, value in zip(self._maps, maps, strict=True)},
            "size": size,
            "signal": signal[None],
            "noise": noise[None],
            "t": np.array([t]),
            "coefficients": np.array(coefficients, np.float32),
        }
        outputs = ["pred_boxes", "scores", "reid_feats", "next_signal"]
        boxes, scores, feats, following = self._run(outputs, feeds)
        return [boxes, scores, feats, following[0]]


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image (H, W, 3) to float32 without antialiasing, as PyTorch's ``interpolate``."""
    image = image.astype(np.float32)
    for axis, new in ((0, height), (1, width)):
        old = image.shape[axis]
        scale = np.float32(old) / np.float32(new)
        place = (
            (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
        ).clip(0)
        first = place.astype(np.int64)
        share = (place - first).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        second = np.minimum(first + 1, old - 1)
        image = image.take(first, axis) * (1 - share) + image.take(second, axis) * share
    return image


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression; returns the indices of the kept boxes, best first."""
    order, kept = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        corner = np.maximum(boxes[order, :2], boxes[first, :2])
        sides = np.minimum(boxes[order, 2:], boxes[first, 2:]) - corner
        overlap = sides.clip(min=0).prod(axis=1)
        order = order[overlap <= threshold * (areas[order] + areas[first] - overlap)]
    return np.array(kept, np.int64)


class TorchNoise:
    """The standard normal numbers of ``torch.randn`` with a seeded CPU generator, in NumPy.

    PyTorch draws uniform numbers with 24 bits from a Mersenne Twister, and transforms them in
    groups of 16 by the method of Box and Muller; an incomplete last group is drawn again.

    Args:
        seed: Seed, of which PyTorch uses the lower 32 bits.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def normal(self, rows: int, width: int) -> np.ndarray:
        """Returns numbers (rows, width) float32; requires at least 16 of them."""
        count = rows * width
        assert count >= 16, "PyTorch draws fewer numbers in another way"
        values = self._uniform(count)
        whole = count // 16 * 16
        groups = values[:whole]
        values[:whole] = self._transform(groups)
        if count % 16:
            values[-16:] = self._transform(self._uniform(16))
        return values.reshape(rows, width)

    def _uniform(self, count: int) -> np.ndarray:
        words = self._twister.randint(0, 2**32, count, dtype=np.uint32)
        return (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    @staticmethod
    def _transform(uniform: np.ndarray) -> np.ndarray:
        first, second = uniform.reshape(-1, 2, 8).transpose(1, 0, 2)
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first))
        angle = np.float32(2 * np.pi) * second
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
