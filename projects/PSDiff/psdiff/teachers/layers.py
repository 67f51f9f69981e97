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
    """Non-local block (Wang et al. 2018) in the form of AGW's release.

    Pairs of cells have weights query * key / (H W), of one channel, instead of a softmax. The last
    normalization is zero-initialized, so that a new block is the identity.

    Args:
        channels: Channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, 1, 1) for _ in range(3))
        self.out = nn.Conv2d(1, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a feature map of the same shape (n, C, H, W)."""
        query, key, value = self.query(x), self.key(x), self.value(x)  # (n, 1, H, W)
        # (query key^T) value = query (key^T value), so no (HW, HW) matrix is needed
        seen = query * (key * value).mean(dim=(2, 3), keepdim=True)
        return x + self.norm(self.out(seen))
