# SPDX-License-Identifier: Apache-2.0
"""Diffusion-guided region proposal network (DGRPN): an RPN that is shown where the word looks.

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
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn

_NORMS = ("image", "batch")


class AttentionPeaks(NamedTuple):
    """Where the attention peaks and how far each peak reaches (Eq. 1 and 2)."""

    scores: Tensor
    """S, (B, H, W) float32: the attention above the threshold."""
    cells: Tensor
    """(B, K, 2) int64, (x, y) by falling score."""
    valid: Tensor
    """(B, K) bool; the other entries are not to be used."""
    extents: Tensor
    """(B, K, 2) float32: s_w and s_h in cells."""


class AttentionModulator(nn.Module):
    """Amplifies a feature map around the peaks of an attention map (Eq. 1 to 4).

    Args:
        tau: Eq. 1, the share of the maximum below which attention counts as zero.
        delta: Eq. 2, smallest extent in cells.
        peak_window: side in cells of the window whose maximum a peak must be; odd.
        neighbor_window: side in cells of the window that the extent is measured in; odd.
        topk: K, peaks of highest score that are kept.
        beta_init, learn_beta: Eq. 3, width of the Gaussians.
        gamma_init: Eq. 4, strength; it is learnt. At 0 the map is left as it is.
        mask_empty_peaks: False: where an image has less than K peaks, cells of score zero take
            their places, in reading order, and get Gaussians too (as the release does on a CPU).
        norm: whether an attention map is divided by the maximum of its ``image`` or ``batch``.
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
        """Eq. 4, F + gamma G F.

        Args:
            features: F, (B, C, H, W). attention: (B, 1, H, W) in [0, 1], no gradient.

        Returns:
            (B, C, H, W), dtype of ``features``.
        """
        gain = self.gamma * self.gaussians(attention)
        return features + gain.to(features.dtype) * features

    def gaussians(self, attention: Tensor) -> Tensor:
        """G of Eq. 3: (B, 1, H, W) -> (B, 1, H, W) in [0, 1]; zero for an image without peak.

        G is the largest of the K Gaussians in every cell. All share the width beta, so the largest
        is the one of the nearest peak whatever beta is: only that distance needs a graph.
        """
        with torch.no_grad():
            distance = _nearest(self.find_peaks(attention))
        has_peak = torch.isfinite(distance)
        beta = self.beta.float().abs() + 1e-6
        g = torch.exp(-distance.masked_fill(~has_peak, 0.0) / beta)
        return (g * has_peak)[:, None]

    @torch.no_grad()
    def find_peaks(self, attention: Tensor) -> AttentionPeaks:
        """Eq. 1 and 2: (B, 1, H, W) -> the peaks that :meth:`gaussians` puts its Gaussians at."""
        scores = self.scores(attention[:, 0])
        cells, valid = self.peaks(scores)
        extents = torch.stack(self.extents(scores, cells), dim=2)
        return AttentionPeaks(scores, cells, valid, extents)

    def scores(self, attention: Tensor) -> Tensor:
        """S of Eq. 1: (B, H, W) -> (B, H, W) float32."""
        attention = attention.float().clamp(min=0.0)
        if self.norm == "image":
            highest = attention.amax(dim=(1, 2), keepdim=True)
        else:
            highest = attention.max().view(1, 1, 1)
        scaled = torch.where(highest > 0, attention / (highest + 1e-8), attention)
        return torch.where(scaled > self.tau, scaled, 0.0)

    def peaks(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Cells that are the highest of their window: (B, H, W) -> (B, K, 2) int64 and (B, K) bool.

        Peaks come by falling score, equal ones in reading order; invalid entries are not to be
        used. K is less than ``topk`` on a map of fewer cells.
        """
        window = self.peak_window
        highest = F.max_pool2d(scores[:, None], window, stride=1, padding=window // 2)[:, 0]
        candidates = torch.where((scores > 0) & (scores == highest), scores, 0.0).flatten(1)
        values, order = candidates.sort(dim=1, descending=True, stable=True)
        values, order = values[:, : self.topk], order[:, : self.topk]
        width = scores.shape[2]
        peaks = torch.stack([order % width, order // width], dim=2)
        return peaks, values > 0 if self.mask_empty_peaks else torch.ones_like(values).bool()

    def extents(self, scores: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """s_w and s_h of Eq. 2, (B, K) each: spread of the scores in the window of each peak.

        Scores are weights as they are; they do not sum to one.
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
    """Least ((X - x) / s_w)^2 + ((Y - y) / s_h)^2 over the valid peaks, (B, H, W); inf without
    any."""
    height, width = peaks.scores.shape[1:]
    x = torch.arange(width, device=peaks.scores.device)
    y = torch.arange(height, device=peaks.scores.device)
    dx = ((x - peaks.cells[..., 0, None]) / peaks.extents[..., 0, None]).square()
    dy = ((y - peaks.cells[..., 1, None]) / peaks.extents[..., 1, None]).square()
    dx = dx.masked_fill(~peaks.valid[..., None], float("inf"))
    return (dx[:, :, None, :] + dy[:, :, :, None]).amin(dim=1)


@PROPOSAL_GENERATOR_REGISTRY.register()
class DGRPN(RPN):
    """Detectron2's RPN and, before it, the modulation of its input.

    ``guide`` is called first; its result goes under the name ``guided`` into the features that the
    RPN (``MODEL.RPN.IN_FEATURES``) and, if wanted, the RoI heads (``MODEL.ROI_HEADS.IN_FEATURES``)
    read: ``guided`` as released, or ``det``, the map before modulation, as in Fig. 3b.
    """

    @configurable
    def __init__(self, *, modulator: AttentionModulator | None, **kwargs) -> None:
        """
        Args:
            modulator: None for a plain RPN.
            **kwargs: of :class:`detectron2.modeling.proposal_generator.RPN`.
        """
        super().__init__(**kwargs)
        self.modulator = modulator

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
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
        """The map that the RPN looks at, see :class:`AttentionModulator`."""
        return features if self.modulator is None else self.modulator(features, attention)
