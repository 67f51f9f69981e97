# SPDX-License-Identifier: Apache-2.0
"""Multi-granularity embedder: pooled re-ID maps -> one unit-length embedding.

Shape shorthand in this file:
    N: RoIs. C: channels. h, w: cells of a pooled map. D: length of the embedding.
"""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from fvcore.nn import weight_init
from torch import Tensor, nn

from diffps.norm import RowNorm, is_empty, no_rows


def split_evenly(total: int, parts: int) -> list[int]:
    """Splits a number into parts that differ by at most one, the larger ones first.

    >>> split_evenly(512, 3)
    [171, 171, 170]
    """
    small, larger = divmod(total, parts)
    return [small + 1] * larger + [small] * (parts - larger)


class CBAM(nn.Module):
    """Convolutional block attention: a gate per channel, then a gate per cell."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size=1),
        )
        self.spatial = nn.Conv2d(2, 1, kernel_size=7, padding=3)
        for module in (self.mlp[0], self.mlp[2], self.spatial):
            weight_init.c2_msra_fill(module)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        average, peak = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        x = x * torch.sigmoid(self.mlp(average) + self.mlp(peak))
        stats = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial(stats))


class DropPath(nn.Module):
    """Zeroes whole rows with some probability in training, and scales up the others."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        if not self.training or self.probability == 0:
            return x
        keep = 1.0 - self.probability
        mask = torch.rand(len(x), 1, device=x.device) < keep
        return x * mask.to(x.dtype) / keep


class StripProjector(nn.Module):
    """Turns one horizontal strip of a map into its part of the embedding."""

    def __init__(self, channels: int, dim: int, drop_path: float, reduction: int) -> None:
        super().__init__()
        self.attention = CBAM(channels, reduction)
        self.linear = nn.Linear(channels, dim, bias=False)
        weight_init.c2_xavier_fill(self.linear)
        self.norm = RowNorm(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, s, w) -> (N, d)."""
        x = self.attention(x).amax(dim=(2, 3))
        return self.drop_path(self.norm(self.linear(x)))


class MapEmbedder(nn.Module):
    """Turns one map into its share of the embedding, from 1, 2, ... strips of its height.

    Branch i splits the map into i strips and gets an even share of D', which its strips share
    evenly, in order from the top.
    """

    def __init__(
        self, channels: int, dim: int, branches: int, drop_path: float, reduction: int
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for index, share in enumerate(split_evenly(dim, branches)):
            dims = split_evenly(share, index + 1)
            self.branches.append(
                nn.ModuleList(StripProjector(channels, d, drop_path, reduction) for d in dims)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, D')."""
        parts = []
        for branch in self.branches:
            strips = x.split(split_evenly(x.shape[2], len(branch)), dim=2)
            parts += [project(strip) for project, strip in zip(branch, strips, strict=True)]
        return torch.cat(parts, dim=1)


class MultiGranularityEmbedder(nn.Module):
    """Embeds the input and the output of the re-ID head together, each with half of D.

    Args:
        in_channels: C of every map, in the order in which their parts are concatenated.
        embed_dim: D.
        branches: Number of branches, which is the number of strips of the finest one.
        drop_path: Probability with which a strip is dropped in training.
        reduction: Reduction ratio of the channel gates.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: list[int],
        embed_dim: int,
        branches: int = 3,
        drop_path: float = 0.1,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        least = len(in_channels) * sum(range(1, branches + 1))
        if embed_dim < least or branches < 1:
            raise ValueError(
                f"MODEL.REID.EMBED_DIM is {embed_dim}, but MODEL.DIFFPS.REID.BRANCHES {branches} "
                f"on {len(in_channels)} maps need at least one branch and {least} dimensions."
            )
        self.embed_dim = embed_dim
        self.maps = nn.ModuleList(
            MapEmbedder(channels, dim, branches, drop_path, reduction)
            for channels, dim in zip(
                in_channels, split_evenly(embed_dim, len(in_channels)), strict=True
            )
        )

    @classmethod
    def from_config(cls, cfg, in_channels: list[int]) -> dict:
        """Returns the arguments of the constructor."""
        reid = cfg.MODEL.DIFFPS.REID
        return {
            "in_channels": in_channels,
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "branches": reid.BRANCHES,
            "drop_path": reid.DROP_PATH,
            "reduction": reid.CBAM_REDUCTION,
        }

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Embeds RoIs.

        Args:
            maps: (N, C, h, w), one per entry of ``in_channels``.

        Returns:
            (N, D) float32 of unit length.
        """
        if is_empty(maps[0]):
            # the last map, computed from the other one, ties both to the graph
            return no_rows(self, maps[-1].float(), self.embed_dim)
        parts = [embed(x) for embed, x in zip(self.maps, maps, strict=True)]
        return F.normalize(torch.cat(parts, dim=1).float(), dim=1)
