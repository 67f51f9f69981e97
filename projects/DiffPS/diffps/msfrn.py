# SPDX-License-Identifier: Apache-2.0
"""Multi-scale frequency refinement network (MSFRN): frozen activations -> re-ID feature map.

Shape shorthand in this file:
    B: images. C: channels of an activation. P: channels of the network (``dim``). H, W: cells.
A level is the set of all activations of one resolution; the first level is the coarsest.
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
    """Result of a :class:`FrequencyRefinement`.

    Attributes:
        bands: Sub-bands before the refinement, (B, P, h, w) each.
        refined_bands: Sub-bands after it, strengths included.
        gates: Gates of LL, LH, HL and HH, (B, P, 1, 1) in [0, 1]; None for an unchanged band.
        output: (B, P, H, W).
    """

    bands: SubBands
    refined_bands: SubBands
    gates: tuple[Tensor | None, ...]
    output: Tensor


class MergedLevel(NamedTuple):
    """One level of an :class:`MSFRN`.

    Attributes:
        names: Activations of the level.
        summed: Their mix plus the coarser level, before refinement, (B, P, H, W).
        refinement: None for the coarsest level, and for all if ``MSFRN.ENABLED`` is False.
        output: Input of the next level, (B, P, H, W).
    """

    names: list[str]
    summed: Tensor
    refinement: Refinement | None
    output: Tensor


class LinearProjection(nn.Sequential):
    """Projects an activation to P channels by 1x1, depth-wise 3x3 and 1x1 convolutions with norm.

    (B, C, H, W) -> (B, P, H, W). There is no ReLU at the end.
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
    """Refines one sub-band by a gate per channel, from the average over the band (Fig. 3c).

    ``paper``: the gate is computed from the depth-wise filtered band and multiplies the band
    itself, which keeps its sign. ``code``, as in the release: convolutions, norm and ReLU compute a
    new band, which the gate multiplies; the result is never negative.
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
        """(B, P, h, w) -> (B, P, h, w)."""
        return self.refine(band)[0]

    def refine(self, band: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the refined band and its gate, (B, P, 1, 1)."""
        filtered = self.depthwise(band)
        if self.mode == "code":
            band = filtered = self.mix(filtered)
        gate = torch.sigmoid(self.gate(filtered.mean(dim=(2, 3), keepdim=True)))
        return band * gate, gate


class FrequencyRefinement(nn.Module):
    """Refines a map in the wavelet domain, each sub-band separately (Eq. 5).

    Args:
        dim: P.
        mode: ``code`` or ``paper``, see :class:`SubBandRefinement`.
        refine_ll: Whether the low-pass band is refined too (Fig. 3c) or left unchanged (release).
        residual: Whether the input is added to the result.
    """

    def __init__(self, dim: int, mode: str, refine_ll: bool, residual: bool) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"MODEL.DIFFPS.MSFRN.FRM_MODE is '{mode}'; it must be one of {_MODES}")
        self.residual = residual
        self.refine_ll = SubBandRefinement(dim, mode) if refine_ll else None
        self.refine_high = nn.ModuleList(SubBandRefinement(dim, mode) for _ in range(3))
        # strength of LH, HL, HH
        self.gamma = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, H, W) -> (B, P, H, W), for any H and W."""
        return self.refine(x).output

    def refine(self, x: Tensor) -> Refinement:
        """Returns the refined map with its sub-bands before and after."""
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
    """Merges all activations of one resolution: a shared projection each, then a 1x1 mix."""

    def __init__(self, num_features: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.project = LinearProjection(in_channels, dim)
        self.mix = nn.Identity()
        if num_features > 1:
            self.mix = nn.Conv2d(num_features * dim, dim, kernel_size=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C, H, W) each -> (B, P, H, W)."""
        # one call per activation: each is normalized by its own batch statistics
        return self.mix(torch.cat([self.project(x) for x in features], dim=1))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of (B, P, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, H, W) -> (B, P, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MSFRN(nn.Module):
    """Sums the levels from coarse to fine, and refines every sum but the first.

    Every level adds the enlarged (bilinear) result of the coarser one. Levels between the first
    and the last are normalized over their channels before they are refined.

    Args:
        levels: Names of the activations of each level.
        in_channels: C of the activations of each level.
        dim: P.
        refine: Whether to refine the sums.
        mode: See :class:`FrequencyRefinement`.
        refine_ll: See :class:`FrequencyRefinement`.
        residual: See :class:`FrequencyRefinement`.
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
        """Returns the arguments of the constructor."""
        msfrn = cfg.MODEL.DIFFPS.MSFRN
        key = "MODEL.DIFFPS.MSFRN.LEVELS"
        levels = [list(names) for names in msfrn.LEVELS]
        in_channels, strides = [], []
        for names in levels:
            specs = [feature_shape(input_shape, name, key) for name in names]
            shapes = {(spec.channels, spec.stride) for spec in specs}
            if len(shapes) != 1:
                raise ValueError(
                    f"{key}: {names} share one projection, so they must have the same number of "
                    f"channels and stride; they have (channels, stride) {sorted(shapes)}."
                )
            channels, stride = shapes.pop()
            in_channels.append(channels)
            strides.append(stride)
        if not levels or any(a <= b for a, b in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"{key} must be ordered from coarse to fine; strides are {strides}.")
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
            features: Activations of the backbone, (B, C, H, W) each.

        Returns:
            (B, P, H, W) at the resolution of the last level.
        """
        merged = None
        for level in self.merge(features):
            merged = level.output
        return self.output(merged)

    def merge(self, features: dict[str, Tensor]) -> Iterator[MergedLevel]:
        """Yields the levels from coarse to fine, with all intermediate results."""
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
