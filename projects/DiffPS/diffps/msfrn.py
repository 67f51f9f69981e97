# SPDX-License-Identifier: Apache-2.0
"""Multi-scale frequency refinement network (MSFRN): frozen activations -> re-ID feature map.

Shape shorthand in this file:
    B: images. C: channels of an activation. P: channels of the network (``dim``). H, W: cells.
"Level": all activations of one resolution; the first level is the coarsest.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from diffps.det_aggregator import feature_shape
from diffps.dwt import SubBands, haar_dwt, haar_idwt

_MODES = ("code", "paper")


class Refinement(NamedTuple):
    """What a :class:`FrequencyRefinement` does to a map."""

    bands: SubBands
    """Before; (B, P, h, w) each."""
    refined_bands: SubBands
    """After, strengths included."""
    gates: tuple[Tensor | None, ...]
    """(B, P, 1, 1) in [0, 1] for each of LL, LH, HL, HH; None for a band that is left as it is."""
    output: Tensor
    """(B, P, H, W)."""


class MergedLevel(NamedTuple):
    """One level of an :class:`MSFRN`, from coarse to fine."""

    names: list[str]
    """Activations that went into it."""
    summed: Tensor
    """(B, P, H, W): their mix plus the coarser level, before refinement."""
    refinement: Refinement | None
    """None for the coarsest level, and for all with MSFRN.ENABLED False."""
    output: Tensor
    """(B, P, H, W): what the next level is given."""


class LinearProjection(nn.Sequential):
    """Brings an activation to P channels: 1x1, depth-wise 3x3, 1x1, each with norm.

    (B, C, H, W) -> (B, P, H, W). No ReLU at the end.
    """

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, dim, kernel_size=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, kernel_size=1, bias=False),
            nn.BatchNorm2d(dim),
        )


class SubBandRefinement(nn.Module):
    """Refines one sub-band: a gate per channel, from the average over the band (Fig. 3c).

    ``paper``: the gate comes from the depth-wise filtered band and multiplies the band itself,
    whose sign is kept. ``code``: convolutions, norm and ReLU make a new band out of it, which the
    gate multiplies; the result is never negative.

    (B, P, h, w) -> (B, P, h, w).
    """

    def __init__(self, dim: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        if mode == "code":
            self.mix = nn.Sequential(
                nn.Conv2d(dim, dim, kernel_size=1, bias=False),
                nn.BatchNorm2d(dim),
                nn.ReLU(inplace=True),
            )
        self.gate = nn.Conv2d(dim, dim, kernel_size=1)

    def forward(self, band: Tensor) -> Tensor:
        return self.refine(band)[0]

    def refine(self, band: Tensor) -> tuple[Tensor, Tensor]:
        """The refined band and the gate that it was multiplied by, (B, P, 1, 1)."""
        filtered = self.depthwise(band)
        if self.mode == "code":
            band = filtered = self.mix(filtered)
        gate = torch.sigmoid(self.gate(filtered.mean(dim=(2, 3), keepdim=True)))
        return band * gate, gate


class FrequencyRefinement(nn.Module):
    """Refines a map in the wavelet domain (Eq. 5): sub-bands apart, then together again.

    (B, P, H, W) -> (B, P, H, W), any H and W.

    Args:
        dim: P.
        mode: ``code`` or ``paper``, see :class:`SubBandRefinement`.
        refine_ll: whether the low-pass band is refined too (Fig. 3c) or passes as it is (code).
        residual: whether the input is added to the result.
    """

    def __init__(self, dim: int, mode: str, refine_ll: bool, residual: bool) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"MODEL.DIFFPS.MSFRN.FRM_MODE is '{mode}'; it must be one of {_MODES}")
        self.residual = residual
        self.refine_ll = SubBandRefinement(dim, mode) if refine_ll else None
        self.refine_high = nn.ModuleList(SubBandRefinement(dim, mode) for _ in range(3))
        # Strength of LH, HL, HH.
        self.gamma = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.refine(x).output

    def refine(self, x: Tensor) -> Refinement:
        """The refined map, with its sub-bands before and after."""
        bands = haar_dwt(x)
        ll, ll_gate = bands[0], None
        if self.refine_ll is not None:
            ll, ll_gate = self.refine_ll.refine(ll)
        refined, gates = [ll], [ll_gate]
        for refine, band, gamma in zip(self.refine_high, bands[1:], self.gamma, strict=True):
            band, gate = refine.refine(band)
            refined.append((band * gamma).to(ll.dtype))
            gates.append(gate)
        output = haar_idwt(tuple(refined), x.shape[-2:])
        if self.residual:
            output = x + output
        return Refinement(bands, tuple(refined), tuple(gates), output)


class Level(nn.Module):
    """All activations of one resolution -> one map: a shared projection each, then a 1x1 mix."""

    def __init__(self, num_features: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.project = LinearProjection(in_channels, dim)
        self.mix = nn.Identity()
        if num_features > 1:
            self.mix = nn.Conv2d(num_features * dim, dim, kernel_size=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C, H, W) each -> (B, P, H, W)."""
        # One call per activation: each is normalised by its own batch statistics.
        return self.mix(torch.cat([self.project(x) for x in features], dim=1))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of (B, P, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MSFRN(nn.Module):
    """Adds up the levels from coarse to fine, refining every sum but the first one.

    Every level adds the enlarged (bilinear) result of the coarser one. Levels between the first
    and the last are normalised over their channels before they are refined.
    """

    @configurable
    def __init__(
        self,
        *,
        levels: list[list[str]],
        in_channels: list[int],
        dim: int,
        refine: bool = True,
        mode: str = "code",
        refine_ll: bool = False,
        residual: bool = True,
    ) -> None:
        """
        Args:
            levels: names of the activations per level.
            in_channels: C of the activations per level.
            dim: P.
            refine: False leaves out the refinement and only adds up the levels.
            mode, refine_ll, residual: see :class:`FrequencyRefinement`.
        """
        super().__init__()
        self.levels = levels
        self.dim = dim
        self.collect = nn.ModuleList(
            Level(len(names), channels, dim)
            for names, channels in zip(levels, in_channels, strict=True)
        )
        finer = range(1, len(levels))
        self.norm = nn.ModuleList(
            ChannelNorm(dim) if index < len(levels) - 1 else nn.Identity() for index in finer
        )
        self.refine = nn.ModuleList(
            FrequencyRefinement(dim, mode, refine_ll, residual) if refine else nn.Identity()
            for _ in finer
        )
        self.output = nn.Conv2d(dim, dim, kernel_size=1, bias=False)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        msfrn = cfg.MODEL.DIFFPS.MSFRN
        key = "MODEL.DIFFPS.MSFRN.LEVELS"
        levels = [list(names) for names in msfrn.LEVELS]
        in_channels, strides = [], []
        for names in levels:
            shapes = {(s.channels, s.stride) for s in (feature_shape(input_shape, n, key)
                                                       for n in names)}  # fmt: skip
            if len(shapes) != 1:
                raise ValueError(
                    f"{key}: {names} share one projection, so they must be of the same number of "
                    f"channels and stride; they have (channels, stride) {sorted(shapes)}."
                )
            channels, stride = shapes.pop()
            in_channels.append(channels)
            strides.append(stride)
        if not levels or any(a <= b for a, b in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"{key} must go from coarse to fine; the strides are {strides}.")
        return {
            "levels": levels,
            "in_channels": in_channels,
            "dim": msfrn.DIM,
            "refine": msfrn.ENABLED,
            "mode": msfrn.FRM_MODE,
            "refine_ll": msfrn.REFINE_LL,
            "residual": msfrn.RESIDUAL,
        }

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Merges activations.

        Args:
            features: of the backbone, (B, C, H, W) each.

        Returns:
            (B, P, H, W) at the resolution of the last level.
        """
        merged = None
        for level in self.merge(features):
            merged = level.output
        return self.output(merged)

    def merge(self, features: dict[str, Tensor]) -> Iterator[MergedLevel]:
        """The levels one after another, coarsest first, with all that happens in between."""
        merged = None
        for index, (names, collect) in enumerate(zip(self.levels, self.collect, strict=True)):
            x, refinement = collect([features[name] for name in names]), None
            if merged is None:
                merged = x
            else:
                coarse = F.interpolate(merged, x.shape[-2:], mode="bilinear", align_corners=False)
                x = self.norm[index - 1](x + coarse)
                refine = self.refine[index - 1]
                if isinstance(refine, FrequencyRefinement):
                    refinement = refine.refine(x)
                merged = x if refinement is None else refinement.output
            yield MergedLevel(names, x, refinement, merged)
