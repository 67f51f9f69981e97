# SPDX-License-Identifier: Apache-2.0
"""Inference of PSDiff (Algorithm 2): from noise to detections, and embeddings of given boxes.

Shape shorthand in this file:
    B: images. N: proposals of an image. Q: given boxes of an image. D: length of an embedding.
Naming: ``*_signal`` tensors live in the frame in which noise is added (box_diffusion.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from psdiff.box_diffusion import SignalCodec, boxes_to_norm
from psdiff.head import HeadOutput
from psdiff.inference_settings import InferenceSettings
from psdiff.sampler import Trajectory, unit_reid


@dataclass(frozen=True)
class DenoisingStep:
    """What one step saw and what it predicted.

    Args:
        t: time of the step.
        boxes: (B, N, 4) noisy boxes that went in, XYXY pixels of the input images.
        output: the predictions.
    """

    t: int
    boxes: Tensor
    output: HeadOutput


class ReverseProcess:
    """Runs the head step by step on image features that are computed once.

    Args:
        head: the denoising head, or what is called like it. codec: ranges of the two signals.
        settings: sampler, renewal, which predictions become detections.
        num_proposals: N. embed_dim: D.
        device: where the features are.
    """

    def __init__(
        self,
        head: nn.Module,
        codec: SignalCodec,
        settings: InferenceSettings,
        *,
        num_proposals: int,
        embed_dim: int,
        device: torch.device,
    ) -> None:
        self.head, self.codec, self.settings = head, codec, settings
        self.num_proposals, self.embed_dim = num_proposals, embed_dim
        self.device = device

    def steps(
        self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]], seeds: list[int]
    ) -> Iterator[DenoisingStep]:
        """Goes from pure noise to the prediction.

        Args:
            features: (B, C, H, W) each. image_sizes: (h, w) of the images in the batch.
            seeds: of each image's noise.

        Raises:
            FloatingPointError: a prediction is infinite or NaN.
        """
        settings, codec = self.settings, self.codec
        trajectory = Trajectory(codec, settings.sampler_settings, settings.renewal)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        boxes_signal, reid_signal = self._noisy_proposals(generators)
        for t in trajectory.times:
            boxes = torch.stack(
                [codec.decode_boxes(b, s) for b, s in zip(boxes_signal, image_sizes, strict=True)]
            )
            token = settings.reid_feedback * reid_signal
            output = self.head(features, boxes, token, self._times(t, len(seeds)))
            require_finite(vars(output), t)
            yield DenoisingStep(t, boxes, output)
            if t == trajectory.times[-1]:
                break
            start = torch.stack(
                [
                    codec.encode_boxes(boxes_to_norm(b, s))
                    for b, s in zip(output.boxes, image_sizes, strict=True)
                ]
            )
            noise = None
            if settings.eta:
                noise = self._noise(generators, self.num_proposals, 4 + self.embed_dim)
            boxes_signal, reid_signal = trajectory.step(
                start, output.reid_feats, boxes_signal, reid_signal, noise
            )
            if settings.renewal:
                weak = output.logits.sigmoid() < settings.renewal_thresh
                # Noise for all rows: what a row gets does not depend on the others' scores.
                new_boxes, new_reid = self._noisy_proposals(generators)
                boxes_signal = torch.where(weak[..., None], new_boxes, boxes_signal)
                reid_signal = torch.where(weak[..., None], new_reid, reid_signal)
                trajectory.renew(weak)

    def detect(
        self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]], seeds: list[int]
    ) -> list[Instances]:
        """Detections of a batch in the frame of the input; arguments as for :meth:`steps`."""
        outputs: list[HeadOutput] = []
        for step in self.steps(features, image_sizes, seeds):
            outputs = [*outputs, step.output] if self.settings.ensemble else [step.output]
        results = []
        for i, (size, seed) in enumerate(zip(image_sizes, seeds, strict=True)):
            predictions = [(x.boxes[i], x.logits[i], x.reid_feats[i]) for x in outputs]
            boxes, logits, reid_feats = map(torch.cat, zip(*predictions, strict=True))
            instances = self.select(boxes, logits, reid_feats, size)
            if self.settings.embed_detections:
                instances.reid_feats = self.embed_boxes(
                    one_image(features, i), instances.pred_boxes.tensor, seed
                )
            results.append(instances)
        return results

    def embed_boxes(self, features: dict[str, Tensor], boxes: Tensor, seed: int) -> Tensor:
        """Embeds the persons in given boxes of one image: only the embedding is denoised.

        Every box runs as an image of its own, so that its embedding does not depend on which
        other boxes were asked for.

        Args:
            features: (1, C, H, W) each. boxes: (Q, 4) XYXY pixels of the input image.
            seed: of the image's noise.

        Returns:
            (Q, D) of unit length; (0, D) for no boxes.
        """
        if len(boxes) == 0:
            return boxes.new_zeros(0, self.embed_dim)
        total = boxes.new_zeros(len(boxes), self.embed_dim)
        generator = torch.Generator().manual_seed(seed)
        # The boxes never move, so they are pooled once for all steps.
        roi_feats = self.head.pool(features, boxes[None]).transpose(0, 1)
        for _ in range(self.settings.query_draws):
            total = total + self._denoise_reid(roi_feats, boxes[:, None], generator)
        return unit_reid(total)

    def _denoise_reid(self, roi_feats: Tensor, boxes: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of the embeddings of boxes that stay: (Q, 1, S, C), (Q, 1, 4) -> (Q, D)."""
        trajectory = Trajectory(self.codec, self.settings.query_sampler_settings, renewable=False)
        count, still = len(boxes), boxes.new_zeros(len(boxes), 1, 4)
        reid_signal = self._shared_noise(generator, count, self.embed_dim)
        for t in trajectory.times:
            token = self.settings.reid_feedback * reid_signal
            output = self.head.denoise(roi_feats, boxes, token, self._times(t, count))
            require_finite({"reid_feats": output.reid_feats}, t)
            if t == trajectory.times[-1]:
                break
            noise = None
            if self.settings.eta:
                noise = self._shared_noise(generator, count, 4 + self.embed_dim)
            _, reid_signal = trajectory.step(still, output.reid_feats, still, reid_signal, noise)
        return unit_reid(output.reid_feats[:, 0])

    def select(
        self, boxes: Tensor, logits: Tensor, reid_feats: Tensor, image_size: tuple[int, int]
    ) -> Instances:
        """Predictions of one image -> detections: score threshold, NMS, at most max_detections."""
        scores = logits.sigmoid()
        keep = scores > self.settings.score_thresh
        boxes, scores, reid_feats = boxes[keep], scores[keep], reid_feats[keep]
        box_list = Boxes(boxes)
        box_list.clip(image_size)
        keep = box_list.nonempty()
        boxes, scores, reid_feats = box_list.tensor[keep], scores[keep], reid_feats[keep]
        classes = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        keep = batched_nms(boxes, scores, classes, self.settings.nms_thresh)
        keep = keep[: self.settings.max_detections]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
            reid_feats=unit_reid(reid_feats[keep]),
        )

    def _noisy_proposals(self, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Pure noise for boxes (B, N, 4) and embeddings (B, N, D)."""
        noise = self._noise(generators, self.num_proposals, 4 + self.embed_dim)
        return noise[..., :4], noise[..., 4:]

    def _noise(self, generators: list[torch.Generator], rows: int, width: int) -> Tensor:
        """Standard normal noise (len(generators), rows, width); drawn on the CPU, so that it is
        the same on every device."""
        noise = [torch.randn(rows, width, generator=generator) for generator in generators]
        return torch.stack(noise).to(self.device)

    def _shared_noise(self, generator: torch.Generator, count: int, width: int) -> Tensor:
        """One draw for all boxes of an image, so that their order does not matter:
        (count, 1, width)."""
        return self._noise([generator], 1, width).expand(count, -1, -1)

    def _times(self, t: int, count: int) -> Tensor:
        return torch.full((count,), t, device=self.device)


def one_image(features: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """The features of one image of a batch, as a batch of one."""
    return {name: value[index : index + 1] for name, value in features.items()}


def require_finite(predictions: dict[str, Tensor], t: int) -> None:
    """Stops before the next step pools boxes that are no numbers, which crashes the kernel.

    Raises:
        FloatingPointError: infinities or NaN, with the names of what holds them.
    """
    finite = torch.stack([value.isfinite().all() for value in predictions.values()]).tolist()
    bad = [name for name, good in zip(predictions, finite, strict=True) if not good]
    if bad:
        raise FloatingPointError(
            f"PSDiff predicts infinities or NaN ({', '.join(bad)}) in the denoising step at "
            f"t = {t}. Either the weights hold such values, because their training diverged (see "
            "MODEL.WEIGHTS), or half precision overflowed; then evaluate in float32."
        )
