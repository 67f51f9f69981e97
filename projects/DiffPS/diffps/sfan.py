# SPDX-License-Identifier: Apache-2.0
"""Semantic-adaptive feature aggregation (SFAN): RoI features weighted by similarity to words.

Shape shorthand in this file:
    N: RoIs. C: channels. h, w: cells of a pooled RoI. K: body parts, one word each.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

_NORMS = ("part", "spatial", "sigmoid")


class SemanticWeights(NamedTuple):
    """Weights that SFAN applies to RoI features.

    Attributes:
        part_maps: S, (N, K, h, w) float32, the normalized similarity to each part.
        part_weights: w, (K,), the share of each part; sums to one.
        total: Factor of the features, (N, 1, h, w) float32.
    """

    part_maps: Tensor
    part_weights: Tensor
    total: Tensor


class SFAN(nn.Module):
    """Weights every cell of an RoI by its similarity to head, shirts, pants and shoes.

    With X the RoI feature, T_k the text vector of part k and s_k = cos(X, T_k) / temperature in
    each cell, the normalized map S_k and the weighted sum of Eq. 6 are

        ``part``     S_k = softmax of s over the parts
        ``spatial``  S_k = softmax of s_k over the cells, times their number (mean one)
        ``sigmoid``  S_k = sigmoid(s_k)

        F_sem = sum_k w_k S_k X,  w = softmax(part_weights)

    Since all parts weight the same X, F_sem is X times the single-channel map sum_k w_k S_k, and X
    is not copied per part. With ``skip`` the result is X + alpha (F_sem - X), otherwise F_sem.

    Args:
        text_vectors: (K, D_text), frozen; part of the diffusion model, hence not saved.
        channels: C; must be D_text unless ``project``.
        norm: See above.
        temperature: Divisor of the cosines.
        learn_temperature: Whether the temperature is learnt, in log space.
        alpha_init: Initial alpha. At 0, ``part`` hardly ever gets a gradient.
        skip: See above.
        project: Whether features are compared with the text after a learnt 1x1 convolution
            C -> D_text.
    """

    @configurable
    def __init__(
        self,
        *,
        text_vectors: Tensor,
        channels: int,
        norm: str = "spatial",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        alpha_init: float = 0.5,
        skip: bool = True,
        project: bool = False,
    ) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"MODEL.DIFFPS.SFAN.NORM is '{norm}'; it must be one of {_NORMS}.")
        if temperature <= 0:
            raise ValueError(f"MODEL.DIFFPS.SFAN.TEMPERATURE is {temperature}; it must be > 0.")
        if len(text_vectors) == 0:
            raise ValueError(
                "MODEL.DIFFPS.SFAN.PARTS is empty: set at least one, or set SFAN.ENABLED False."
            )
        text_dim = text_vectors.shape[1]
        if channels != text_dim and not project:
            raise ValueError(
                f"SFAN compares features of {channels} channels (MODEL.DIFFPS.MSFRN.DIM) with text "
                f"vectors of {text_dim}: set MODEL.DIFFPS.SFAN.PROJECT True, or DIM {text_dim}."
            )
        self.norm, self.skip = norm, skip
        text_vectors = F.normalize(text_vectors.detach().float(), dim=1)
        self.register_buffer("text_vectors", text_vectors, persistent=False)
        self.project = nn.Conv2d(channels, text_dim, 1, bias=False) if project else nn.Identity()
        self.part_weights = nn.Parameter(torch.ones(len(text_vectors)))
        log_temperature = torch.tensor(float(temperature)).log()
        if learn_temperature:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature, persistent=False)
        if skip:
            self.alpha = nn.Parameter(torch.tensor(float(alpha_init)))

    @classmethod
    def from_config(cls, cfg, channels: int, text_vectors: Tensor) -> dict:
        """Returns the arguments of the constructor."""
        sfan = cfg.MODEL.DIFFPS.SFAN
        return {
            "text_vectors": text_vectors,
            "channels": channels,
            "norm": sfan.NORM,
            "temperature": sfan.TEMPERATURE,
            "learn_temperature": sfan.LEARN_TEMPERATURE,
            "alpha_init": sfan.ALPHA_INIT,
            "skip": sfan.SKIP,
            "project": sfan.PROJECT,
        }

    def part_maps(self, x: Tensor) -> Tensor:
        """Computes the normalized maps S: (N, C, h, w) -> (N, K, h, w), float32."""
        x = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            cosine = F.conv2d(x, self.text_vectors[:, :, None, None])
            cosine = cosine / x.norm(dim=1, keepdim=True).clamp(min=1e-8)
            s = cosine / self.log_temperature.exp()
            if self.norm == "part":
                return s.softmax(dim=1)
            if self.norm == "sigmoid":
                return s.sigmoid()
            return s.flatten(2).softmax(dim=2).view_as(s) * (s.shape[2] * s.shape[3])

    def weigh(self, x: Tensor) -> SemanticWeights:
        """Computes the factor of every cell of (N, C, h, w), with the maps that it is made of."""
        part_maps = self.part_maps(x)
        part_weights = self.part_weights.softmax(dim=0)
        total = (part_weights.view(1, -1, 1, 1) * part_maps).sum(dim=1, keepdim=True)
        if self.skip:
            total = 1 + self.alpha * (total - 1)
        return SemanticWeights(part_maps, part_weights, total)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w) of the same dtype."""
        return x * self.weigh(x).total.to(x.dtype)
