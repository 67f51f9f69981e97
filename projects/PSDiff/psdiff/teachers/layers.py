# SPDX-License-Identifier: Apache-2.0
"""Layers shared by several teachers.

Shape shorthand in this file: n crops, C channels, (H, W) size of a feature map, S stripes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GEM_MIN = 1e-6


class GeneralizedMeanPool(nn.Module):
    """Generalized mean pooling with a learned exponent p: (n, C, H, W) -> (n, C)."""

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))

    def forward(self, x: Tensor) -> Tensor:
        """Pools a feature map (n, C, H, W) to (n, C)."""
        return x.clamp(min=_GEM_MIN).pow(self.p).mean(dim=(2, 3)).pow(1.0 / self.p)


def pool_stripes(x: Tensor, stripes: int, kind: Literal["avg", "max"]) -> list[Tensor]:
    """Pools S horizontal stripes of equal height, from head to feet.

    Args:
        x: Feature map (n, C, H, W).
        stripes: Number of stripes S. Neighbors share a row if H is not a multiple of it.
        kind: ``avg`` or ``max``.

    Returns:
        S pooled features (n, C).
    """
    pool = F.adaptive_avg_pool2d if kind == "avg" else F.adaptive_max_pool2d
    return list(pool(x, (stripes, 1)).squeeze(3).unbind(dim=2))


class NonLocalBlock(nn.Module):
    """Non-local block (embedded Gaussian, Wang et al. 2018).

    The last normalization is zero-initialized, so that a new block is the identity.

    Args:
        channels: Channels C; queries, keys and values have half as many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a feature map of the same shape (n, C, H, W)."""
        n, _, height, width = x.shape
        query, key, value = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(dim=2)  # (n, HW, HW)
        seen = (value @ weights.transpose(1, 2)).view(n, -1, height, width)
        return x + self.norm(self.out(seen))
