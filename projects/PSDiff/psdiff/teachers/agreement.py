# SPDX-License-Identifier: Apache-2.0
"""How far two kinds of feature agree on who is near whom (the cross agreement score of PPLR).

Shape shorthand in this file: M crops, C length of a feature, k neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_neighbors(feats: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """The k crops of highest cosine to each crop, itself left out.

    Args:
        feats: (M, C) of any length. k: at most M - 1 are given.
        chunk: rows compared at once, which bounds the memory at ``chunk`` * M similarities.

    Returns:
        (M, min(k, M - 1)) int64.
    """
    feats = F.normalize(feats, dim=1)
    k = min(k, len(feats) - 1)
    found = []
    for start in range(0, len(feats), chunk):
        sim = feats[start : start + chunk] @ feats.T
        own = torch.arange(start, start + len(sim), device=sim.device)
        sim.scatter_(1, own[:, None], -torch.inf)
        found.append(sim.topk(k, dim=1).indices)
    return torch.cat(found)


def cross_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Share of common neighbours: size of the intersection over size of the union (PPLR, Eq. 1).

    Args:
        first, second: (M, k) int64 neighbours of the same crops by two kinds of feature.

    Returns:
        (M,) from 0, none in common, to 1, the same ones.
    """
    k = first.shape[1]
    common = (first[:, :, None] == second[:, None, :]).sum(dim=(1, 2))
    return common / (2 * k - common)
