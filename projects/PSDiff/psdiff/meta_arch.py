# SPDX-License-Identifier: Apache-2.0
"""PSDiff as a Detectron2 meta-architecture: training (Algorithm 1) and inference (Algorithm 2).

Shape shorthand in this file:
    B: images. N: proposals of an image. Q: given boxes of an image. D: length of an embedding.
Naming: ``*_signal`` tensors live in the frame in which noise is added (box_diffusion.py).
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from psdiff.box_diffusion import (
    SignalCodec,
    add_noise,
    boxes_to_norm,
    cosine_alphas_cumprod,
    pad_ground_truth,
)
from psdiff.criterion import LossWeights, PSDiffCriterion
from psdiff.head import PSDiffHead
from psdiff.matcher import MatchWeights, ProposalMatcher
from psdiff.sampler import DualSampler, unit_reid


@META_ARCH_REGISTRY.register()
class PSDiff(nn.Module):
    """Person search by denoising boxes and re-ID embeddings together.

    Training inputs are those of :class:`psdiff.data.PSDiffMapper`; the result is a dict of
    ``loss_cls``, ``loss_l1``, ``loss_giou`` and ``loss_reid``.

    In eval mode every image gives ``instances`` (``pred_boxes`` in pixels of the original image,
    ``scores``, ``pred_classes``, ``reid_feats`` (n, D) of unit length) and, where the input has
    ``queries``, ``query_feats`` (q, D) of unit length in their order.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: PSDiffHead,
        criterion: PSDiffCriterion,
        codec: SignalCodec,
        embed_dim: int,
        num_proposals: int,
        pad: str,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        make_sampler: Callable[[], DualSampler],
        train_draws: int = 1,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        max_detections: int = 100,
        ensemble: bool = False,
        embed_detections: bool = False,
        query_draws: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            codec: scales of the two signals. embed_dim: D. num_proposals: N.
            pad: how ground truths are filled up to N (:func:`pad_ground_truth`).
            make_sampler: builds the sampler at the first inference.
            train_draws: times and noises per image in one training iteration.
            score_thresh, nms_thresh, max_detections: which predictions become detections.
            ensemble: whether the predictions of all steps become detections, or the last step's.
            embed_detections: whether detections are embedded like queries, with their box fixed.
            query_draws: noise draws over which the embedding of a given box is averaged.
            seed: of the noise in inference.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.codec = codec
        self.embed_dim, self.num_proposals, self.pad = embed_dim, num_proposals, pad
        self.make_sampler = make_sampler
        self.train_draws = train_draws
        self._sampler: DualSampler | None = None
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.max_detections = max_detections
        self.ensemble, self.embed_detections = ensemble, embed_detections
        self.query_draws, self.seed = query_draws, seed
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        self.register_buffer("alphas_cumprod", cosine_alphas_cumprod(), persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        psdiff = cfg.MODEL.PSDIFF
        backbone = build_backbone(cfg)
        head = PSDiffHead(cfg, backbone.output_shape())
        loss = psdiff.LOSS
        focal = {"focal_alpha": loss.FOCAL_ALPHA, "focal_gamma": loss.FOCAL_GAMMA}
        match_weights = MatchWeights(cls=loss.CLS, l1=loss.L1, giou=loss.GIOU, **focal)
        matcher = ProposalMatcher(psdiff.MATCHER, match_weights, psdiff.MATCHER_TOP_IOUS)
        weights = LossWeights(loss.CLS, loss.L1, loss.GIOU, loss.REID, **focal)
        return {
            "backbone": backbone,
            "head": head,
            "criterion": PSDiffCriterion(matcher, weights),
            "codec": head.codec,
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "num_proposals": psdiff.NUM_PROPOSALS,
            "pad": psdiff.PAD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "make_sampler": lambda: DualSampler(
                head.codec, psdiff.SAMPLER, psdiff.STEPS, psdiff.ETA
            ),
            "train_draws": psdiff.TRAIN_DRAWS,
            "score_thresh": psdiff.SCORE_THRESH,
            "nms_thresh": psdiff.NMS_THRESH,
            "ensemble": psdiff.ENSEMBLE,
            "embed_detections": psdiff.EMBED_DETECTIONS,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "query_draws": psdiff.QUERY_DRAWS,
            "seed": psdiff.SEED,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def sampler(self) -> DualSampler:
        """The sampler, built when it is first needed."""
        if self._sampler is None:
            self._sampler = self.make_sampler()
        return self._sampler

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalises the images and pads them to one size."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training mode, predictions per image in eval mode."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        shape = (len(targets), self.train_draws)
        t = torch.randint(len(self.alphas_cumprod), shape, device=self.device).flatten()
        targets = [target for target in targets for _ in range(self.train_draws)]
        boxes, reid_signal = self.noisy_proposals(targets, t)
        roi_feats = self.head.pool(features, boxes.view(shape[0], -1, 4))
        roi_feats = roi_feats.view(*boxes.shape[:2], *roi_feats.shape[2:])
        return self.criterion(self.head.denoise(roi_feats, boxes, reid_signal, t), targets)

    # ---- training ---------------------------------------------------------------------------
    @torch.no_grad()
    def noisy_proposals(self, targets: list[Instances], t: Tensor) -> tuple[Tensor, Tensor]:
        """Dual noise generator (Section IV-A).

        Args:
            targets: B Instances with ``gt_boxes`` and ``gt_reid_feats``. t: (B,) times.

        Returns:
            (B, N, 4) noisy boxes in pixels and (B, N, D) noisy embedding signals.
        """
        all_boxes, all_reid = [], []
        for target, time in zip(targets, t, strict=True):
            boxes_norm, reid_feats = pad_ground_truth(
                boxes_to_norm(target.gt_boxes.tensor, target.image_size),
                target.gt_reid_feats,
                self.num_proposals,
                self.pad,
            )
            boxes_start = self.codec.encode_boxes(boxes_norm)
            reid_start = self.codec.encode_reid(reid_feats)
            ab = self.alphas_cumprod[time]
            boxes_signal = add_noise(boxes_start, torch.randn_like(boxes_start), ab)
            all_boxes.append(self.codec.decode_boxes(boxes_signal, target.image_size))
            all_reid.append(add_noise(reid_start, torch.randn_like(reid_start), ab))
        return torch.stack(all_boxes), torch.stack(all_reid)

    # ---- inference --------------------------------------------------------------------------
    @torch.no_grad()
    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """Detects and embeds all persons, or embeds the persons in given boxes.

        Args:
            batched_inputs: one dict per image; ``image`` is needed, ``height``, ``width`` (of the
                original), ``queries`` and ``image_id`` (seed of the noise) are used if present.
            detected_instances: boxes (``pred_boxes``, pixels of the input image) to be embedded
                instead of detecting; they come back with ``reid_feats``.
            do_postprocess: whether boxes are scaled to the original image.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        keys = [x.get("image_id", 0) for x in batched_inputs]
        if detected_instances is not None:
            results = [x.to(self.device) for x in detected_instances]
            for index, instances in enumerate(results):
                instances.reid_feats = self.embed_boxes(
                    _one_image(features, index), instances.pred_boxes.tensor, keys[index]
                )
        else:
            results = self.detect(features, images.image_sizes, keys)
        if not do_postprocess:
            return results
        outputs = []
        for index, (x, instances) in enumerate(zip(batched_inputs, results, strict=True)):
            h, w = x.get("height", instances.image_size[0]), x.get("width", instances.image_size[1])
            output = {"instances": detector_postprocess(instances, h, w)}
            if "queries" in x and detected_instances is None:
                output["query_feats"] = self.embed_boxes(
                    _one_image(features, index),
                    x["queries"].pred_boxes.tensor.to(self.device),
                    keys[index],
                )
            outputs.append(output)
        return outputs

    def detect(
        self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]], keys: list[int]
    ) -> list[Instances]:
        """Algorithm 2 on a batch: from pure noise to detections, in the frame of the input."""
        sampler, codec = self.sampler, self.codec
        generators = [self._generator(key) for key in keys]
        width = 4 + self.embed_dim
        x_t = self._noise(generators, self.num_proposals, width)
        boxes_signal, reid_signal = x_t[..., :4], x_t[..., 4:]
        outputs = []
        for t in sampler.times:
            boxes = torch.stack(
                [codec.decode_boxes(b, s) for b, s in zip(boxes_signal, image_sizes, strict=True)]
            )
            output = self.head(features, boxes, reid_signal, self._times(t, len(keys)))
            outputs = [*outputs, output] if self.ensemble else [output]
            if t == sampler.times[-1]:
                break
            start = torch.stack(
                [
                    codec.encode_boxes(boxes_to_norm(b, s))
                    for b, s in zip(output.boxes, image_sizes, strict=True)
                ]
            )
            noise = self._noise(generators, self.num_proposals, width) if sampler.eta else None
            boxes_signal, reid_signal = sampler.step(
                start, output.reid_feats, boxes_signal, reid_signal, t, noise
            )
        results = []
        for i, (size, key) in enumerate(zip(image_sizes, keys, strict=True)):
            predictions = [(x.boxes[i], x.logits[i], x.reid_feats[i]) for x in outputs]
            instances = self._select(*map(torch.cat, zip(*predictions, strict=True)), size)
            if self.embed_detections:
                instances.reid_feats = self.embed_boxes(
                    _one_image(features, i), instances.pred_boxes.tensor, key
                )
            results.append(instances)
        return results

    def embed_boxes(self, features: dict[str, Tensor], boxes: Tensor, key: int = 0) -> Tensor:
        """Embeds the persons in given boxes of one image: only the embedding is denoised.

        Every box runs as an image of its own, so that its embedding does not depend on which
        other boxes were asked for.

        Args:
            features: (1, C, H, W) each. boxes: (Q, 4) XYXY pixels of the input image.
            key: image id, which seeds the noise.

        Returns:
            (Q, D) of unit length; (0, D) for no boxes.
        """
        if len(boxes) == 0:
            return boxes.new_zeros(0, self.embed_dim)
        sampler, total = self.sampler, boxes.new_zeros(len(boxes), self.embed_dim)
        generator = self._generator(key)
        # The boxes never move, so they are pooled once for all steps.
        roi_feats = self.head.pool(features, boxes[None]).transpose(0, 1)
        fixed, still = boxes[:, None], boxes.new_zeros(len(boxes), 1, 4)
        for _ in range(self.query_draws):
            # The same noise for every box: the result does not depend on their order.
            reid_signal = self._shared_noise(generator, len(boxes), self.embed_dim)
            for t in sampler.times:
                output = self.head.denoise(
                    roi_feats, fixed, reid_signal, self._times(t, len(boxes))
                )
                if t == sampler.times[-1]:
                    break
                noise = None
                if sampler.eta:
                    noise = self._shared_noise(generator, len(boxes), 4 + self.embed_dim)
                _, reid_signal = sampler.step(
                    still, output.reid_feats, still, reid_signal, t, noise
                )
            total = total + unit_reid(output.reid_feats[:, 0])
        return unit_reid(total)

    def _select(
        self, boxes: Tensor, logits: Tensor, reid_feats: Tensor, image_size: tuple[int, int]
    ) -> Instances:
        """Predictions of one image -> detections: score threshold, NMS, at most max_detections."""
        scores = logits.sigmoid()
        keep = scores > self.score_thresh
        boxes, scores, reid_feats = boxes[keep], scores[keep], reid_feats[keep]
        box_list = Boxes(boxes)
        box_list.clip(image_size)
        keep = box_list.nonempty()
        boxes, scores, reid_feats = box_list.tensor[keep], scores[keep], reid_feats[keep]
        classes = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)[: self.max_detections]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
            reid_feats=unit_reid(reid_feats[keep]),
        )

    # ---- noise ------------------------------------------------------------------------------
    def _generator(self, key: int) -> torch.Generator:
        """Noise of an image depends on the seed and the image alone, not on batch or order."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + int(key)) % 2**63)

    def _noise(self, generators: list[torch.Generator], rows: int, width: int) -> Tensor:
        """Standard normal noise (len(generators), rows, width); drawn on the CPU, so that it is
        the same on every device."""
        noise = [torch.randn(rows, width, generator=generator) for generator in generators]
        return torch.stack(noise).to(self.device)

    def _shared_noise(self, generator: torch.Generator, count: int, width: int) -> Tensor:
        """One draw for all boxes of an image: (count, 1, width)."""
        return self._noise([generator], 1, width).expand(count, -1, -1)

    def _times(self, t: int, count: int) -> Tensor:
        return torch.full((count,), t, device=self.device)


def _one_image(features: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: value[index : index + 1] for name, value in features.items()}
