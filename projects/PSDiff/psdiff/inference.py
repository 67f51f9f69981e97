# SPDX-License-Identifier: Apache-2.0
"""Inference of PSDiff (Algorithm 2): detections from noise, and embeddings of given boxes.

Shape shorthand in this file:
    B: images. N: proposals of an image. Q: given boxes of an image. D: embedding dimension.
    S: cells of a pooled window. C: feature channels.
Naming: noise is added to ``*_signal`` tensors (frames in box_diffusion.py).
"""

from collections.abc import Iterator, Sequence
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
    """Input and output of one denoising step.

    Attributes:
        t: Diffusion time of the step.
        boxes: Noisy input boxes (B, N, 4), XYXY pixels of the input images.
        output: Predictions.
    """

    t: int
    boxes: Tensor
    output: HeadOutput


class ReverseProcess:
    """Runs the head step by step on image features that are computed once.

    Args:
        head: Denoising head, a :class:`psdiff.head.PSDiffHead`.
        codec: Scales of the two signals.
        settings: Sampler, renewal, and selection of detections.
        num_proposals: Proposals N per image.
        embed_dim: Embedding dimension D.
        device: Device of the features.
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
        """Denoises proposals, starting from pure noise.

        Args:
            features: Feature maps (B, C, H, W).
            image_sizes: Sizes (h, w) of the images in the batch.
            seeds: Seeds of the noise of each image.

        Yields:
            One :class:`DenoisingStep` per step of the sampler.

        Raises:
            FloatingPointError: If a prediction of any step is infinite or NaN; before the last
                step is yielded.
        """
        settings, codec = self.settings, self.codec
        trajectory = Trajectory(codec, settings.sampler_settings, settings.renewal)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        boxes_signal, reid_signal = self._noisy_proposals(generators)
        # The pooler reads float32; maps of lower precision are converted once for all steps.
        dtype = features[self.head.in_features[0]].dtype
        features = {name: features[name].float() for name in self.head.in_features}
        finite = []
        for t in trajectory.times:
            # The pooling kernel crashes for boxes of NaN, which are reported after the last step.
            boxes_signal = boxes_signal.nan_to_num()
            boxes = torch.stack(
                [codec.decode_boxes(b, s) for b, s in zip(boxes_signal, image_sizes, strict=True)]
            )
            token = settings.reid_feedback * reid_signal
            output = self.head(features, boxes, token, self._time(t), dtype)
            finite.append(which_are_finite(output.boxes, output.logits, output.reid_feats))
            if t == trajectory.times[-1]:
                require_finite(finite, trajectory.times, ("boxes", "logits", "reid_feats"))
                yield DenoisingStep(t, boxes, output)
                return
            yield DenoisingStep(t, boxes, output)
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
                # Noise for all rows: the noise of a row does not depend on the scores of others.
                new_boxes, new_reid = self._noisy_proposals(generators)
                boxes_signal = torch.where(weak[..., None], new_boxes, boxes_signal)
                reid_signal = torch.where(weak[..., None], new_reid, reid_signal)
                trajectory.renew(weak)

    def detect(
        self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]], seeds: list[int]
    ) -> list[Instances]:
        """Returns the detections of a batch in input pixels; arguments as for :meth:`steps`."""
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
        """Embeds the persons in given boxes of one image; only the embeddings are denoised.

        Each box runs as an image of its own, so that its embedding does not depend on the others.

        Args:
            features: Feature maps (1, C, H, W).
            boxes: Boxes (Q, 4), XYXY pixels of the input image.
            seed: Seed of the noise of the image.

        Returns:
            Embeddings (Q, D) of unit norm; (0, D) without boxes.

        Raises:
            FloatingPointError: If an embedding is infinite or NaN.
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
        """Embeds fixed boxes from one noise draw: (Q, 1, S, C) and (Q, 1, 4) -> (Q, D)."""
        trajectory = Trajectory(self.codec, self.settings.query_sampler_settings, renewable=False)
        count, still = len(boxes), boxes.new_zeros(len(boxes), 1, 4)
        reid_signal = self._shared_noise(generator, count, self.embed_dim)
        finite = []
        for t in trajectory.times:
            token = self.settings.reid_feedback * reid_signal
            output = self.head.denoise(roi_feats, boxes, token, self._time(t))
            finite.append(which_are_finite(output.reid_feats))
            if t == trajectory.times[-1]:
                break
            noise = None
            if self.settings.eta:
                noise = self._shared_noise(generator, count, 4 + self.embed_dim)
            _, reid_signal = trajectory.step(still, output.reid_feats, still, reid_signal, noise)
        require_finite(finite, trajectory.times, ("reid_feats",))
        return unit_reid(output.reid_feats[:, 0])

    def select(
        self, boxes: Tensor, logits: Tensor, reid_feats: Tensor, image_size: tuple[int, int]
    ) -> Instances:
        """Selects the detections of one image: score threshold, NMS, at most max_detections."""
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
        """Draws pure noise for boxes (B, N, 4) and embeddings (B, N, D)."""
        noise = self._noise(generators, self.num_proposals, 4 + self.embed_dim)
        return noise[..., :4], noise[..., 4:]

    def _noise(self, generators: list[torch.Generator], rows: int, width: int) -> Tensor:
        """Draws normal noise (B, rows, width) on the CPU, so that all devices get the same."""
        noise = [torch.randn(rows, width, generator=generator) for generator in generators]
        return torch.stack(noise).to(self.device)

    def _shared_noise(self, generator: torch.Generator, count: int, width: int) -> Tensor:
        """Draws noise (count, 1, width), equal for all boxes, so that their order is irrelevant."""
        return self._noise([generator], 1, width).expand(count, -1, -1)

    def _time(self, t: int) -> Tensor:
        """Returns the time as (1,), which is broadcast: all rows are at the same time."""
        return torch.full((1,), t, device=self.device)


def one_image(features: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Returns the features of one image as a batch of one."""
    return {name: value[index : index + 1] for name, value in features.items()}


def which_are_finite(*predictions: Tensor) -> Tensor:
    """Returns a bool for each prediction, on its device."""
    return torch.stack([value.isfinite().all() for value in predictions])


def require_finite(finite: Sequence[Tensor], times: Sequence[int], names: Sequence[str]) -> None:
    """Checks all steps at once: reading the flags step by step would synchronize at each.

    Args:
        finite: Flags of :func:`which_are_finite` for each step.
        times: Diffusion time of each step.
        names: Names of the predictions.

    Raises:
        FloatingPointError: If a prediction is infinite or NaN; names the first such step.
    """
    for t, flags in zip(times, torch.stack(list(finite)).tolist(), strict=True):
        bad = [name for name, good in zip(names, flags, strict=True) if not good]
        if bad:
            raise FloatingPointError(
                f"PSDiff predicts infinity or NaN ({', '.join(bad)}) in the denoising step at "
                f"t = {t}. Either the weights contain such values, because their training diverged "
                "(see MODEL.WEIGHTS), or half precision overflowed; then evaluate in float32."
            )
