# SPDX-License-Identifier: Apache-2.0
"""PSDiff as a graph of tensors, for ``torch.export`` and ONNX.

The graph has two independent parts, so that a file holds all weights once: the backbone, and one
denoising step with the update of DDIM. The loop over the steps, the noise and the selection of
detections stay outside: :class:`person_search.search.onnx_model.OnnxModel` runs such a file.

Shape shorthand: N proposals of an image, C channels, D embedding dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn

from person_search.modeling.export import ExportedModel, OneImagePooler, image_of_cells
from psdiff.box_diffusion import boxes_to_norm, cosine_alphas_cumprod
from psdiff.meta_arch import PSDiff
from psdiff.sampler import SamplerSettings, sampling_times, unit_reid

STEP_INPUTS = ("size", "signal", "noise", "t", "coefficients")
STEP_OUTPUTS = ("pred_boxes", "scores", "reid_feats", "next_signal")


class PSDiffGraph(nn.Module):
    """Backbone and denoising step of a model, for one image.

    Args:
        model: Model in eval mode, on the CPU.

    Raises:
        ValueError: If a setting of the model is not supported outside of PyTorch.
    """

    def __init__(self, model: PSDiff) -> None:
        super().__init__()
        settings = model.settings
        for key, value, allowed in (
            ("SAMPLER", settings.sampler, "ddim"),
            ("RENEWAL", settings.renewal, False),
            ("ENSEMBLE", settings.ensemble, False),
            ("EMBED_DETECTIONS", settings.embed_detections, False),
            ("LATENCY_BUDGET_MS", settings.latency_budget_ms, 0),
            ("FROZEN_SHARE", model.teacher.share if model.teacher else 0, 0),
        ):
            if value != allowed:
                raise ValueError(
                    f"MODEL.PSDIFF.{key} is {value}; a model can only be exported with {allowed}."
                )
        self.model = model

    def forward(
        self,
        cells: Tensor,
        maps: list[Tensor],
        size: Tensor,
        signal: Tensor,
        noise: Tensor,
        t: Tensor,
        coefficients: Tensor,
    ) -> tuple[Tensor, ...]:
        """Computes the maps of an image, and one step on given maps.

        Args:
            cells: Image, 0 to 255, padded at the right and below with the pixel mean, see
                :func:`image_of_cells`.
            maps: Feature maps of each level, (1, C, H_l, W_l).
            size: Size (h, w) of the image without padding, float32.
            signal: Box and embedding signals (1, N, 4 + D).
            noise: Standard normal noise (1, N, 4 + D).
            t: Diffusion time (1,) int64.
            coefficients: Factors (3,) of the prediction, the signal and the noise in the next
                signal, see :func:`ddim_coefficients`.

        Returns:
            The maps of the image; boxes (N, 4) in pixels, scores (N,), embeddings (N, D) of unit
            norm, and the next signal (1, N, 4 + D).
        """
        model, head, codec = self.model, self.model.head, self.model.codec
        image = (image_of_cells(cells) - model.pixel_mean) / model.pixel_std
        computed = model.backbone(image)
        boxes_signal, reid_signal = signal.split([4, model.embed_dim], dim=-1)
        output = head(
            dict(zip(head.in_features, maps, strict=True)),
            codec.decode_boxes(boxes_signal, size),
            model.settings.reid_feedback * reid_signal,
            t,
        )
        boxes_start = codec.clamp_boxes(codec.encode_boxes(boxes_to_norm(output.boxes, size)))
        start = torch.cat([boxes_start, codec.encode_reid(output.reid_feats)], dim=-1)
        next_signal = torch.stack([start, signal, noise], dim=-1) @ coefficients
        return (
            *(computed[name] for name in head.in_features),
            output.boxes[0],
            output.logits[0].sigmoid(),
            unit_reid(output.reid_feats[0]),
            next_signal,
        )


def ddim_coefficients(settings: SamplerSettings) -> list[list[float]]:
    """Returns the three factors of each DDIM step, of which there is one less than predictions.

    DDIM, Eq. 12, solved for the prediction of the clean signal, the signal and the noise.
    """
    ab = cosine_alphas_cumprod().double()[sampling_times(settings.steps)]
    now, later = ab[:-1], ab[1:]
    std = settings.eta * ((1 - later) / (1 - now) * (1 - now / later)).sqrt()
    signal = ((1 - later - std**2) / (1 - now)).sqrt()
    return torch.stack([later.sqrt() - signal * now.sqrt(), signal, std], dim=1).tolist()


class UnreadLevels(nn.Module):
    """Stands for the levels that an FPN adds above its last one, and that the head does not read.

    A stride of 2 there would exclude images of one or two cells from the graph.

    Args:
        top_block: Block of a Detectron2 ``FPN`` to replace.
    """

    def __init__(self, top_block: nn.Module) -> None:
        super().__init__()
        self.num_levels, self.in_feature = top_block.num_levels, top_block.in_feature

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the last map for each of the levels."""
        return [x] * self.num_levels


def export_graph(model: PSDiff, max_side: int) -> torch.export.ExportedProgram:
    """Exports a model with ``torch.export``.

    Args:
        model: Model in eval mode, on the CPU.
        max_side: Largest side of a padded image.

    Returns:
        A program with the inputs and outputs of :class:`PSDiffGraph`. The sides of the image are
        any multiples of the divisor of the backbone; the number of proposals is any.
    """
    graph, divisor = PSDiffGraph(model), model.backbone.size_divisibility
    # 5 x 7 cells and 11 proposals: sizes of an example must not coincide with constants
    cells = torch.zeros(1, 3, 5, divisor, 7, divisor)
    largest = max(7, max_side // divisor)  # the example itself must be within the bounds
    sides = [torch.export.Dim(name, min=1, max=largest) for name in ("rows", "columns")]
    any_size = torch.export.Dim.DYNAMIC
    pooler, model.head.pooler = model.head.pooler, OneImagePooler(model.head.pooler)
    top_block = getattr(model.backbone, "top_block", None)
    if top_block is not None:
        added = list(model.backbone.output_shape())[-top_block.num_levels :]
        if not set(added) & set(model.head.in_features):
            model.backbone.top_block = UnreadLevels(top_block)
    try:
        with torch.no_grad():
            computed = model.backbone(image_of_cells(cells))
            maps = [computed[name].contiguous() for name in model.head.in_features]
            signal, size = torch.zeros(1, 11, 4 + model.embed_dim), torch.tensor([90.0, 200.0])
            return torch.export.export(
                graph,
                (cells, maps, size, signal, signal.clone(), torch.tensor([999]), torch.ones(3)),
                dynamic_shapes=(
                    {2: sides[0], 4: sides[1]},
                    [{2: any_size, 3: any_size} for _ in maps],
                    {},
                    {1: any_size},
                    {1: any_size},
                    {},
                    {},
                ),
                strict=False,
            )
    finally:
        model.head.pooler = pooler
        if top_block is not None:
            model.backbone.top_block = top_block


def describe(model: PSDiff, max_side: int) -> dict[str, Any]:
    """Returns what a program needs to run the graph, as plain types."""
    settings = model.settings
    schedules = {
        name: {"t": sampling_times(s.steps), "coefficients": ddim_coefficients(s)}
        for name, s in (
            ("detection", settings.sampler_settings),
            ("query", settings.query_sampler_settings),
        )
    }
    return {
        "max_side": max_side,
        "divisor": model.backbone.size_divisibility,
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "maps": list(model.head.in_features),
        "proposals": model.num_proposals,
        "embed_dim": model.embed_dim,
        "snr_box": model.codec.snr_box,
        "schedules": schedules,
        "noisy": settings.eta > 0,
        "query_draws": settings.query_draws,
        "seed": settings.seed,
        "score_thresh": settings.score_thresh,
        "nms_thresh": settings.nms_thresh,
        "max_detections": settings.max_detections,
    }


def export_model(model: PSDiff, max_side: int) -> ExportedModel:
    """Implements :meth:`PSDiff.export`."""
    maps = model.head.in_features
    return ExportedModel(
        export_graph(model, max_side),
        ("image", *(f"{name}_in" for name in maps), *STEP_INPUTS),
        (*maps, *STEP_OUTPUTS),
        describe(model, max_side),
    )
