# SPDX-License-Identifier: Apache-2.0
"""PSDiff as a Detectron2 meta-architecture: training (Algorithm 1) and inference (Algorithm 2).

Shape shorthand in this file:
    B: images. N: proposals of an image. D: embedding dimension.
Naming: noise is added to ``*_signal`` tensors (frames in box_diffusion.py).
"""

from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from person_search.modeling import run_by_size
from person_search.modeling.export import ExportedModel
from psdiff.box_diffusion import (
    SignalCodec,
    add_noise,
    boxes_to_norm,
    cosine_alphas_cumprod,
    pad_ground_truth,
)
from psdiff.config import check_range
from psdiff.criterion import PSDiffCriterion
from psdiff.head import HeadOutput, PSDiffHead
from psdiff.inference import DenoisingStep, ReverseProcess, one_image
from psdiff.inference_latency import LatencyMeter, steps_within
from psdiff.inference_settings import InferenceSettings, image_seeds
from psdiff.matcher import LossWeights, ProposalMatcher
from psdiff.teachers.crop_embedder import TeacherPart


@META_ARCH_REGISTRY.register()
class PSDiff(nn.Module):
    """Person search by denoising boxes and re-ID embeddings jointly.

    In training, inputs come from :class:`psdiff.data.PSDiffMapper`, and the output is a dict with
    ``loss_cls``, ``loss_l1``, ``loss_giou`` and ``loss_reid``.

    In evaluation, the output for each image is a dict with ``instances`` (``pred_boxes`` in pixels
    of the original image, ``scores``, ``pred_classes``, ``reid_feats`` (n, D) of unit norm) and, if
    the input has ``queries``, ``query_feats`` (q, D) of unit norm in the same order. With a teacher
    in the model (``FROZEN_SHARE``), D is the sum of both dimensions.
    """

    thread_safe_inference = True  # an inference changes no attribute of the model

    # The sampler amplifies rounding: some proposals end at another person (docs/deployment.md).
    auto_low_precision = False

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
        train_draws: int = 1,
        true_boxes: float = 0.0,
        unroll: float = 0.0,
        settings: InferenceSettings | None = None,
        test_size: tuple[int, int] | None = None,
        teacher: TeacherPart | None = None,
    ) -> None:
        """Builds the model from its parts.

        Args:
            backbone: Backbone with FPN.
            head: Denoising head.
            criterion: Losses.
            codec: Scales of the two signals.
            embed_dim: Dimension D of the embeddings that are denoised.
            num_proposals: Proposals N per image.
            pad: Padding of the ground truths to N, see :func:`pad_ground_truth`.
            pixel_mean: Mean of each channel.
            pixel_std: Standard deviation of each channel.
            train_draws: Draws of time and noise per image and training iteration.
            true_boxes: Share of draws with noise on the embeddings only.
            unroll: Share of iterations that denoise the model's own predictions.
            settings: Inference settings. Default: those of :class:`InferenceSettings`.
            test_size: Largest image size (h, w) in testing, for a latency budget.
            teacher: Teacher whose embeddings are appended to those of the head.
        """
        super().__init__()
        check_range("NUM_PROPOSALS", num_proposals, 1)
        check_range("TRAIN_DRAWS", train_draws, 1)
        check_range("TRUE_BOXES", true_boxes, 0, 1)
        check_range("UNROLL", unroll, 0, 1)
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.codec = codec
        self.teacher = teacher
        self.signal_dim, self.num_proposals, self.pad = embed_dim, num_proposals, pad
        self.embed_dim = embed_dim + (teacher.embed_dim if teacher else 0)
        self.train_draws, self.true_boxes, self.unroll = train_draws, true_boxes, unroll
        self.settings = settings or InferenceSettings()
        self.latency = LatencyMeter(test_size)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.register_buffer("alphas_cumprod", cosine_alphas_cumprod(), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the arguments of ``__init__``."""
        psdiff = cfg.MODEL.PSDIFF
        backbone = build_backbone(cfg)
        head = PSDiffHead(cfg, backbone.output_shape())
        loss = psdiff.LOSS
        weights = LossWeights(
            loss.CLS, loss.L1, loss.GIOU, loss.REID, loss.FOCAL_ALPHA, loss.FOCAL_GAMMA
        )
        matcher = ProposalMatcher(
            psdiff.MATCHER, weights, psdiff.MATCHER_TOP_IOUS, psdiff.MATCHER_REID
        )
        sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
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
            "train_draws": psdiff.TRAIN_DRAWS,
            "true_boxes": psdiff.TRUE_BOXES,
            "unroll": psdiff.UNROLL,
            "settings": InferenceSettings.from_config(cfg),
            # A size of 0 means no resizing; the longer side is bounded by the maximum.
            "test_size": (min(sizes), sizes[1]) if all(sizes) else None,
            "teacher": TeacherPart(cfg) if psdiff.FROZEN_SHARE else None,
        }

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    @property
    def loss_normalizer(self) -> tuple[Tensor, Tensor] | None:
        """Normalizer of the last losses, see :class:`person_search.interface.NormalizesLosses`."""
        return self.criterion.normalizer

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalizes the images and pads them to one size."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Returns losses in training mode, predictions of each image in eval mode."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        shape = (len(targets), self.train_draws)
        t = torch.randint(len(self.alphas_cumprod), shape, device=self.device).flatten()
        targets = [target for target in targets for _ in range(self.train_draws)]
        inputs = self._train_inputs(features, targets, t)
        return self.criterion(self._denoise(features, *inputs), targets)

    # ---- training ---------------------------------------------------------------------------
    def load_initial_weights(self) -> None:
        """Loads the teacher; see :class:`person_search.interface.LoadsInitialWeights`."""
        if self.teacher is not None:
            self.teacher.load_initial_weights()

    def _denoise(
        self, features: dict[str, Tensor], boxes: Tensor, reid_signal: Tensor, t: Tensor
    ) -> HeadOutput:
        """Applies the head to several draws of each image, which are pooled together."""
        images = len(features[self.head.in_features[0]])
        roi_feats = self.head.pool(features, boxes.view(images, -1, 4))
        roi_feats = roi_feats.view(*boxes.shape[:2], *roi_feats.shape[2:])
        return self.head.denoise(roi_feats, boxes, reid_signal, t)

    @torch.no_grad()
    def _train_inputs(
        self, features: dict[str, Tensor], targets: list[Instances], t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns noisy boxes in pixels, noisy embedding signals, and their times t.

        In the share ``unroll`` of iterations they are those that a sampling step leads to from the
        predictions at noisier times, which read boxes of these times and pure noise as embeddings.
        A step keeps a part of its input: with a noisy embedding of the teacher there, that part
        would contain the teacher's embedding, which inference never has.
        """
        if not self.unroll or torch.rand(()) >= self.unroll:
            return *self.noisy_proposals(targets, t), t
        later = torch.rand(t.shape, device=t.device) * (len(self.alphas_cumprod) - t)
        noisier = t + later.long()
        boxes_signal, reid_signal, fixed = self.noisy_signals(targets, noisier)
        reid_signal = torch.randn_like(reid_signal)
        boxes = self._decode(boxes_signal, targets)
        output = self._denoise(features, boxes, reid_signal, noisier)
        norm = [boxes_to_norm(b, x.image_size) for b, x in zip(output.boxes, targets, strict=True)]
        boxes_start = self.codec.clamp_boxes(self.codec.encode_boxes(torch.stack(norm)))
        moved = self._sampling_step(boxes_signal, boxes_start, noisier, t)
        boxes_signal = torch.where(fixed[:, None, None], boxes_signal, moved)
        last = torch.full_like(t, len(self.alphas_cumprod) - 1)
        reid_start = self.codec.encode_reid(output.reid_feats)
        reid_signal = self._sampling_step(reid_signal, reid_start, last, t)
        # the pooling kernel crashes for boxes of NaN; the loss then ends the training
        return self._decode(boxes_signal.nan_to_num(), targets), reid_signal, t

    def _sampling_step(self, signal: Tensor, start: Tensor, now: Tensor, t: Tensor) -> Tensor:
        """Steps from times ``now`` (B,) to ``t`` (B,) by DDIM, Eq. 12, given clean signals."""
        ab_now, ab = (self.alphas_cumprod[x][:, None, None].to(signal) for x in (now, t))
        std = self.settings.eta * ((1 - ab) / (1 - ab_now) * (1 - ab_now / ab)).clamp(min=0).sqrt()
        direction = (signal - ab_now.sqrt() * start) / (1 - ab_now).sqrt()
        noise = torch.randn_like(signal)
        return ab.sqrt() * start + (1 - ab - std**2).clamp(min=0).sqrt() * direction + std * noise

    def _decode(self, boxes_signal: Tensor, targets: list[Instances]) -> Tensor:
        pairs = zip(boxes_signal, targets, strict=True)
        return torch.stack([self.codec.decode_boxes(x, y.image_size) for x, y in pairs])

    @torch.no_grad()
    def noisy_proposals(self, targets: list[Instances], t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the boxes (B, N, 4) in pixels and the embeddings of :meth:`noisy_signals`."""
        boxes_signal, reid_signal, _ = self.noisy_signals(targets, t)
        return self._decode(boxes_signal, targets), reid_signal

    @torch.no_grad()
    def noisy_signals(self, targets: list[Instances], t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Generates noisy proposals: the dual noise generator of Section IV-A.

        Args:
            targets: B Instances with ``gt_boxes`` and ``gt_reid_feats``.
            t: Diffusion times (B,).

        Returns:
            Noisy box signals (B, N, 4), noisy embedding signals (B, N, D), and whether the boxes
            have no noise (B,).
        """
        all_boxes, all_reid, fixed = [], [], torch.zeros(t.shape, dtype=torch.bool)
        for index, (target, time) in enumerate(zip(targets, t, strict=True)):
            boxes_norm, reid_feats = pad_ground_truth(
                boxes_to_norm(target.gt_boxes.tensor, target.image_size),
                target.gt_reid_feats,
                self.num_proposals,
                self.pad,
            )
            boxes_start = self.codec.encode_boxes(boxes_norm)
            reid_start = self.codec.encode_reid(reid_feats)
            ab = self.alphas_cumprod[time]
            noisy = add_noise(boxes_start, torch.randn_like(boxes_start), ab)
            fixed[index] = self.true_boxes > 0 and bool(torch.rand(()) < self.true_boxes)
            all_boxes.append(boxes_start if fixed[index] else noisy)
            all_reid.append(add_noise(reid_start, torch.randn_like(reid_start), ab))
        return torch.stack(all_boxes), torch.stack(all_reid), fixed.to(t.device)

    # ---- inference --------------------------------------------------------------------------
    def set_inference(self, **changes) -> None:
        """Changes inference settings permanently, for example ``steps=4, sampler="dpmsolver"``.

        Args:
            **changes: Fields of :class:`InferenceSettings`.
        """
        self.settings = self.settings.changed(**changes)

    @torch.no_grad()
    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
        *,
        generator: torch.Generator | int | None = None,
        **changes,
    ) -> list[dict] | list[Instances]:
        """Detects and embeds all persons, or embeds the persons in given boxes.

        Args:
            batched_inputs: One dict per image with ``image`` and optionally ``height`` and
                ``width`` (of the original), ``queries`` and ``image_id`` (seed of the noise).
            detected_instances: Instances with ``pred_boxes`` (pixels of the input image) that are
                embedded instead of detecting; they are returned with ``reid_feats``.
            do_postprocess: Scales boxes to the original image.
            generator: Replaces (SEED, image_id) as source of noise, see :func:`image_seeds`.
            **changes: Settings for this call only, for example ``steps=2``.

        Returns:
            One output dict per image, see the class, or Instances without ``do_postprocess``.
        """
        settings = self._settings(batched_inputs, changes)
        given = detected_instances or [None] * len(batched_inputs)
        return run_by_size(
            partial(self._infer, self.reverse_process(settings), do_postprocess),
            batched_inputs,
            given,
            self._seeds(batched_inputs, settings, generator),
            size_divisibility=self.backbone.size_divisibility,
        )

    def _infer(
        self,
        process: ReverseProcess,
        do_postprocess: bool,
        batched_inputs: list[dict],
        given: list[Instances | None],
        seeds: list[int],
    ) -> list[dict] | list[Instances]:
        """Makes the predictions of images that are padded to the same size."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if given[0] is None:
            results = process.detect(features, images.image_sizes, seeds)
            for x, instances in zip(batched_inputs, results, strict=True):
                instances.reid_feats = self._with_teacher(
                    x, instances.pred_boxes.tensor, instances.reid_feats
                )
        else:
            results = [x.to(self.device) for x in given if x is not None]
            for index, instances in enumerate(results):
                boxes = instances.pred_boxes.tensor
                embedded = process.embed_boxes(one_image(features, index), boxes, seeds[index])
                instances.reid_feats = self._with_teacher(batched_inputs[index], boxes, embedded)
        if not do_postprocess:
            return results
        outputs = []
        for index, (x, instances) in enumerate(zip(batched_inputs, results, strict=True)):
            h, w = x.get("height", instances.image_size[0]), x.get("width", instances.image_size[1])
            output = {"instances": detector_postprocess(instances, h, w)}
            if "queries" in x and given[index] is None:
                boxes = x["queries"].pred_boxes.tensor.to(self.device)
                embedded = process.embed_boxes(one_image(features, index), boxes, seeds[index])
                output["query_feats"] = self._with_teacher(x, boxes, embedded)
            outputs.append(output)
        return outputs

    def _with_teacher(self, x: dict, boxes: Tensor, reid_feats: Tensor) -> Tensor:
        """Appends the teacher's embeddings of boxes in the image ``x``, if there is a teacher."""
        if self.teacher is None:
            return reid_feats
        return self.teacher.append_to(reid_feats, x["image"].to(self.device), boxes)

    @torch.no_grad()
    def denoising_steps(
        self,
        batched_inputs: list[dict],
        *,
        generator: torch.Generator | int | None = None,
        **changes,
    ) -> list[DenoisingStep]:
        """Returns the input and the predictions of each step, in pixels of the input images.

        Args:
            batched_inputs: See :meth:`inference`, which makes the same predictions; here images of
                one size.
            generator: See :meth:`inference`.
            **changes: See :meth:`inference`.
        """
        settings = self._settings(batched_inputs, changes)
        images = self.preprocess_image(batched_inputs)
        seeds = self._seeds(batched_inputs, settings, generator)
        process = self.reverse_process(settings)
        return list(process.steps(self.backbone(images.tensor), images.image_sizes, seeds))

    def _settings(self, batched_inputs: list[dict], changes: dict) -> InferenceSettings:
        """Returns the settings of a call; a latency budget determines the number of steps."""
        settings = self.settings.changed(**changes)
        if settings.latency_budget_ms > 0:
            size = tuple(batched_inputs[0]["image"].shape[-2:])
            settings = settings.changed(steps=self.latency.agreed_steps(self, settings, size))
        return settings

    @staticmethod
    def _seeds(
        batched_inputs: list[dict],
        settings: InferenceSettings,
        generator: torch.Generator | int | None,
    ) -> list[int]:
        """Returns the seed of the noise of each image."""
        return image_seeds([x.get("image_id", 0) for x in batched_inputs], settings.seed, generator)

    def reverse_process(self, settings: InferenceSettings | None = None) -> ReverseProcess:
        """Returns Algorithm 2 with these settings, by default those of the model."""
        settings = settings or self.settings
        return ReverseProcess(
            self.head,
            self.codec,
            settings,
            num_proposals=settings.num_proposals_test or self.num_proposals,
            embed_dim=self.signal_dim,
            device=self.device,
        )

    def steps_within(
        self, budget_ms: float, image_size: tuple[int, int] | None = None, **changes
    ) -> int:
        """Returns the largest number of steps, up to ``settings.steps``, within a time budget.

        Measures the detection in one image on this machine, once for each image size. Embedding
        given boxes (queries, EMBED_DETECTIONS) is not included.

        Args:
            budget_ms: Time budget in milliseconds.
            image_size: Image size (h, w). Default: the largest that the config's resizing produces.
            **changes: Settings to measure with, as for :meth:`inference`.

        Raises:
            ValueError: If the image size is neither given nor known.
        """
        image_size = image_size or self.latency.test_size
        if image_size is None:
            raise ValueError(
                "image_size is required: INPUT.MIN_SIZE_TEST is 0, so images have any size."
            )
        settings = self.settings.changed(**changes)
        calibration = self.latency.calibrate(self, settings, image_size)
        return steps_within(budget_ms, calibration, settings.steps)

    def export(self, max_side: int, heads_only: bool = False) -> ExportedModel:
        """Exports the backbone and one step; see :class:`person_search.modeling.export.Exports`."""
        from psdiff.export import export_model  # which imports this module

        if heads_only:
            raise ValueError("--heads-only: PSDiff has no frozen backbone; it is exported whole.")
        return export_model(self, max_side)
