# SPDX-License-Identifier: Apache-2.0
"""Colors features by principal components: the first three become red, green and blue.

Shape shorthand: n cells, C channels, (h, w) cells of a map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pca(NamedTuple):
    """Principal components of a set of vectors, deterministic.

    Attributes:
        mean: (C,).
        components: (k, C) of unit length, by descending variance. The entry of largest magnitude
            is positive.
        explained: Share of the total variance of each component, (k,); zeros without variance.
    """

    mean: Tensor
    components: Tensor
    explained: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """Projects (n, C) vectors to (n, k) float64 coordinates."""
        return (vectors.double() - self.mean) @ self.components.T


def fit_pca(vectors: Tensor, count: int = 3) -> Pca:
    """Computes the ``count`` directions of largest variance of (n, C) vectors, at most C.

    Signs of principal components are arbitrary; here the entry of largest magnitude is positive,
    the first of equal ones.
    """
    x = vectors.double()
    mean = x.mean(dim=0)
    x = x - mean
    variances, directions = torch.linalg.eigh(x.T @ x / len(x))
    count = min(count, x.shape[1])
    variances = variances.flip(0).clamp(min=0)
    components = directions.flip(1).T[:count]
    # rounded, so that the last bit does not decide between equal magnitudes
    strongest = (components.abs() * 1e9).round().argmax(dim=1, keepdim=True)
    components = components * components.gather(1, strongest).sign()
    total = variances.sum()
    explained = variances[:count] / total if total > 0 else torch.zeros_like(variances[:count])
    return Pca(mean, components, explained)


def side_by_side(moments: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Concatenates activations along their channels with equal weights.

    Each activation is divided by the root of its total variance over all moments, because otherwise
    one with large values would determine the components.

    Args:
        moments: Activations (C_i, h, w) of each moment, in the same order.

    Returns:
        (sum of C_i, h, w) float64 per moment. An activation without variance becomes zero.
    """
    joined: list[list[Tensor]] = [[] for _ in moments]
    for versions in zip(*moments, strict=True):
        mean = sum(x.double().mean(dim=(1, 2)) for x in versions) / len(versions)
        centered = [x.double() - mean[:, None, None] for x in versions]
        variance = sum(x.square().mean(dim=(1, 2)).sum() for x in centered) / len(versions)
        scale = variance.sqrt().clamp(min=1e-12)
        for parts, x in zip(joined, centered, strict=True):
            parts.append(x / scale)
    return [torch.cat(parts) for parts in joined]


def pca_colors(maps: Sequence[Tensor], together: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """Colors maps by their first three principal components.

    Args:
        maps: (C, h, w) each.
        together: Whether to fit one PCA and one range of colors to all maps, so that equal colors
            mean equal features; otherwise one to each map.

    Returns:
        (h, w, 3) float64 in [0, 1] per map, and per fit the (k,) share of variance. The range of a
        component is from its 1st to its 99th percentile; one without variance is 0.5.
    """
    if not together:
        single = [pca_colors([x]) for x in maps]
        return [colors[0] for colors, _ in single], [shares[0] for _, shares in single]
    vectors = [x.flatten(1).T for x in maps]
    pca = fit_pca(torch.cat(vectors))
    coordinates = pca(torch.cat(vectors))
    limits = torch.quantile(coordinates, torch.tensor([0.01, 0.99]).double(), dim=0)
    low, high = limits
    spread = high - low
    colors = torch.where(
        spread > 1e-9 * coordinates.abs().max(),
        (coordinates - low) / spread.clamp(min=1e-300),
        0.5,
    ).clamp(0, 1)
    missing = 3 - colors.shape[1]
    if missing:
        colors = torch.cat([colors, colors.new_full((len(colors), missing), 0.5)], dim=1)
    parts = colors.split([len(v) for v in vectors])
    images = [part.view(*x.shape[1:], 3) for part, x in zip(parts, maps, strict=True)]
    return images, [pca.explained]
