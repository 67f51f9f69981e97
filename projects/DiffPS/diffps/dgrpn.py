# SPDX-License-Identifier: Apache-2.0
"""Diffusion-guided region proposal network (DGRPN): an RPN guided by cross-attention.

Shape shorthand in this file:
    B: images. C: channels. H, W: cells. K: peaks kept per image.
Naming:
    attention: cross-attention map of the word "person", in [0, 1].
    scores: the attention above the threshold (S of Eq. 1), zero elsewhere.
    peaks: (x, y) cells. Extents s_w, s_h: standard deviations around a peak, in cells.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn

_NORMS = ("image", "batch")


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors with the corners of the cell anchors rounded to whole pixels.

    With ``MODEL.ANCHOR_GENERATOR.OFFSET`` 0 these are the anchors of torchvision's detectors, in
    another order within a cell.
    """

    def generate_cell_anchors(self, *args, **kwargs) -> Tensor:
        """Returns the anchors of one cell, (n, 4)."""
        return super().generate_cell_anchors(*args, **kwargs).round()


class AttentionPeaks(NamedTuple):
    """Peaks of the attention and their extents (Eq. 1 and 2).

    Attributes:
        scores: S, (B, H, W) float32, the attention above the threshold.
        cells: (x, y) of the peaks, (B, K, 2) int64, by descending score.
        valid: (B, K) bool; the other entries must be ignored.
        extents: s_w and s_h in cells, (B, K, 2) float32.
    """

    scores: Tensor
    cells: Tensor
    valid: Tensor
    extents: Tensor


class AttentionModulator(nn.Module):
    """Amplifies a feature map around the peaks of an attention map (Eq. 1 to 4).

    Args:
        tau: Eq. 1, share of the maximum below which attention is set to zero.
        delta: Eq. 2, minimum extent in cells.
        peak_window: Side in cells of the window whose maximum a peak must be; odd.
        neighbor_window: Side in cells of the window in which the extent is measured; odd.
        topk: K, number of peaks of highest score that are kept.
        beta_init: Eq. 3, initial width of the Gaussians.
        learn_beta: Whether the width is learnt.
        gamma_init: Eq. 4, initial strength, which is learnt. At 0 the map is unchanged.
        mask_empty_peaks: Whether an image may have fewer than K peaks. If False, cells of score
            zero take the free places, in reading order, and get Gaussians too (as in the release
            on a CPU).
        norm: Whether attention is divided by the maximum of the ``image`` or of the ``batch``.
    """

    def __init__(
        self,
        *,
        tau: float = 0.7,
        delta: float = 5.0,
        peak_window: int = 7,
        neighbor_window: int = 9,
        topk: int = 50,
        beta_init: float = 1.0,
        learn_beta: bool = True,
        gamma_init: float = 0.0,
        mask_empty_peaks: bool = True,
        norm: str = "image",
    ) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"MODEL.DIFFPS.DGRPN.NORM is '{norm}'; it must be one of {_NORMS}.")
        for key, window in (("PEAK_WINDOW", peak_window), ("NEIGHBOR_WINDOW", neighbor_window)):
            if window < 1 or window % 2 == 0:
                raise ValueError(f"MODEL.DIFFPS.DGRPN.{key} is {window}; it must be odd.")
        if topk < 1:
            raise ValueError(f"MODEL.DIFFPS.DGRPN.TOPK is {topk}; it must be at least 1.")
        self.tau, self.delta, self.topk = tau, delta, topk
        self.peak_window, self.neighbor_window = peak_window, neighbor_window
        self.mask_empty_peaks, self.norm = mask_empty_peaks, norm
        self.beta = nn.Parameter(torch.tensor(float(beta_init)), requires_grad=learn_beta)
        self.gamma = nn.Parameter(torch.tensor(float(gamma_init)))

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Computes Eq. 4, F + gamma G F.

        Args:
            features: F, (B, C, H, W).
            attention: (B, 1, H, W) in [0, 1]; it gets no gradient.

        Returns:
            (B, C, H, W), dtype of ``features``.
        """
        gain = self.gamma * self.gaussians(attention)
        return features + gain.to(features.dtype) * features

    def gaussians(self, attention: Tensor) -> Tensor:
        """Computes G of Eq. 3: (B, 1, H, W) -> (B, 1, H, W) in [0, 1]; zero without a peak.

        G is the maximum of the K Gaussians in every cell. All share the width beta, so the maximum
        is the Gaussian of the nearest peak for any beta, and only that distance is needed.
        """
        with torch.no_grad():
            distance = _nearest(self.find_peaks(attention))
        has_peak = torch.isfinite(distance)
        beta = self.beta.float().abs() + 1e-6
        g = torch.exp(-distance.masked_fill(~has_peak, 0.0) / beta)
        return (g * has_peak)[:, None]

    @torch.no_grad()
    def find_peaks(self, attention: Tensor) -> AttentionPeaks:
        """Computes Eq. 1 and 2: (B, 1, H, W) -> the centers and extents of the Gaussians."""
        scores = self.scores(attention[:, 0])
        cells, valid = self.peaks(scores)
        extents = torch.stack(self.extents(scores, cells), dim=2)
        return AttentionPeaks(scores, cells, valid, extents)

    def scores(self, attention: Tensor) -> Tensor:
        """Computes S of Eq. 1: (B, H, W) -> (B, H, W) float32."""
        attention = attention.float().clamp(min=0.0)
        if self.norm == "image":
            highest = attention.amax(dim=(1, 2), keepdim=True)
        else:
            highest = attention.max().view(1, 1, 1)
        scaled = torch.where(highest > 0, attention / (highest + 1e-8), attention)
        return torch.where(scaled > self.tau, scaled, 0.0)

    def peaks(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the maxima of their windows: (B, H, W) -> (B, K, 2) int64 and validity (B, K).

        Peaks are sorted by descending score, equal ones in reading order. K is less than ``topk``
        on a map of fewer cells.
        """
        window = self.peak_window
        highest = F.max_pool2d(scores[:, None], window, stride=1, padding=window // 2)[:, 0]
        candidates = torch.where((scores > 0) & (scores == highest), scores, 0.0).flatten(1)
        if torch.compiler.is_exporting():  # ONNX has no stable sort, but its TopK is stable
            count = torch.sym_min(candidates.shape[1], self.topk)
            values, order = candidates.topk(count, dim=1)
        else:
            values, order = candidates.sort(dim=1, descending=True, stable=True)
            values, order = values[:, : self.topk], order[:, : self.topk]
        # by a table: ONNX has no division by a size
        rows, columns = (torch.arange(n, device=scores.device) for n in scores.shape[1:])
        table = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=2).flatten(0, 1)
        peaks = table[order]
        return peaks, values > 0 if self.mask_empty_peaks else torch.ones_like(values).bool()

    def extents(self, scores: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """Computes s_w and s_h of Eq. 2, (B, K) each: the spread of the scores around each peak.

        The scores are used as weights without normalization.
        """
        radius = self.neighbor_window // 2
        offsets = torch.arange(-radius, radius + 1, device=scores.device)
        padded = F.pad(scores, (radius,) * 4)
        rows = peaks[..., 1, None] + offsets + radius
        columns = peaks[..., 0, None] + offsets + radius
        images = torch.arange(len(scores), device=scores.device).view(-1, 1, 1, 1)
        patches = padded[images, rows[..., :, None], columns[..., None, :]]
        squares = offsets.float().square()
        variance_x = (patches * squares[None, None, None, :]).sum(dim=(2, 3))
        variance_y = (patches * squares[None, None, :, None]).sum(dim=(2, 3))
        s_w, s_h = (v.clamp(min=1e-8).sqrt().clamp(min=self.delta) for v in
                    (variance_x, variance_y))  # fmt: skip
        return s_w, s_h


def _nearest(peaks: AttentionPeaks) -> Tensor:
    """Minimum of ((X - x) / s_w)^2 + ((Y - y) / s_h)^2 over valid peaks, (B, H, W), or inf."""
    height, width = peaks.scores.shape[1:]
    x = torch.arange(width, device=peaks.scores.device)
    y = torch.arange(height, device=peaks.scores.device)
    dx = ((x - peaks.cells[..., 0, None]) / peaks.extents[..., 0, None]).square()
    dy = ((y - peaks.cells[..., 1, None]) / peaks.extents[..., 1, None]).square()
    dx = dx.masked_fill(~peaks.valid[..., None], float("inf"))
    return (dx[:, :, None, :] + dy[:, :, :, None]).amin(dim=1)


@PROPOSAL_GENERATOR_REGISTRY.register()
class DGRPN(RPN):
    """Detectron2's RPN on a modulated feature map.

    ``guide`` is called first; its result is the feature ``guided``, which the RPN
    (``MODEL.RPN.IN_FEATURES``) and the RoI heads (``MODEL.ROI_HEADS.IN_FEATURES``) read. The RoI
    heads may read ``det`` instead, the map before modulation, as in Fig. 3b.

    Args:
        modulator: Modulates the feature map; None for a plain RPN.
        **kwargs: Arguments of :class:`detectron2.modeling.proposal_generator.RPN`.
    """

    @configurable
    def __init__(self, *, modulator: AttentionModulator | None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.modulator = modulator

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        """Returns the arguments of the constructor."""
        dgrpn = cfg.MODEL.DIFFPS.DGRPN
        args = super().from_config(cfg, input_shape)
        args["modulator"] = None
        if not dgrpn.ENABLED:
            return args
        if "attn" not in input_shape:
            raise ValueError(
                "MODEL.DIFFPS.DGRPN.ENABLED needs the attention map of the backbone, but "
                "MODEL.DIFFPS.BACKBONE.ATTN.LAYERS is empty."
            )
        ours, theirs = input_shape["guided"].stride, input_shape["attn"].stride
        if ours != theirs:
            raise ValueError(
                f"MODEL.DIFFPS.BACKBONE.ATTN.STRIDE is {theirs}, but the detection map "
                f"(MODEL.DIFFPS.DET_AGG.IN_FEATURE) has stride {ours}; they must be equal."
            )
        args["modulator"] = AttentionModulator(
            tau=dgrpn.TAU,
            delta=dgrpn.DELTA,
            peak_window=dgrpn.PEAK_WINDOW,
            neighbor_window=dgrpn.NEIGHBOR_WINDOW,
            topk=dgrpn.TOPK,
            beta_init=dgrpn.BETA_INIT,
            learn_beta=dgrpn.LEARN_BETA,
            gamma_init=dgrpn.GAMMA_INIT,
            mask_empty_peaks=dgrpn.MASK_EMPTY_PEAKS,
            norm=dgrpn.NORM,
        )
        return args

    def guide(self, features: Tensor, attention: Tensor | None) -> Tensor:
        """Returns the input of the RPN, see :class:`AttentionModulator`."""
        return features if self.modulator is None else self.modulator(features, attention)
