# SPDX-License-Identifier: Apache-2.0
"""Collaborative Denoising Layer (PSDiff, Section IV-B, Fig. 2 and 3).

Shape shorthand in this file:
    B: images. N: proposals of an image. M = B * N. S: cells of the pooled window (7 x 7 = 49).
    C: feature channels. D: embedding dimension.

Naming: ``roi_feats`` is F_d of the paper (pooled features of a box), ``reid_tokens`` is F_r (the
noisy embedding); the output of the layer is F_c, the collaborative feature.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psdiff.config import check_choice


class ProposalSelfAttention(nn.Module):
    """SA: self-attention over the proposals of an image, or over the cells of each RoI.

    Over proposals, attention reads the mean of each window and its output is added to all cells,
    which costs a thirtieth of attention over cells.
    """

    def __init__(self, dim: int, heads: int, over: str) -> None:
        super().__init__()
        check_choice("CDL.SA_OVER", over, ("proposals", "cells"))
        self.over = over
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, roi_feats: Tensor) -> Tensor:
        """Returns features of the same shape as ``roi_feats`` (B, N, S, C)."""
        if self.over == "cells":
            tokens = roi_feats.flatten(0, 1)
            update = self.attn(tokens, tokens, tokens, need_weights=False)[0].view_as(roi_feats)
        else:
            tokens = roi_feats.mean(dim=2)
            update = self.attn(tokens, tokens, tokens, need_weights=False)[0].unsqueeze(2)
        return self.norm(roi_feats + update)


class DynamicConvolution(nn.Module):
    """DC: convolves each window with two kernels generated from its embedding.

    The kernels are C x d and d x d' (a bottleneck, which keeps the model at the paper's 31 M
    parameters), each followed by LayerNorm and ReLU. A linear layer then joins all cells.

    Kernels and products stay in float32 in mixed precision: a sum over C products of two computed
    factors easily exceeds the range of float16.
    """

    def __init__(self, dim: int, num_cells: int, hidden: int, out: int) -> None:
        super().__init__()
        self.dim, self.hidden, self.out = dim, hidden, out
        self.kernels = nn.Linear(dim, dim * hidden + hidden * out)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(out)
        self.join = nn.Linear(num_cells * out, dim)

    def init_static(self) -> None:
        """Initializes kernels that barely depend on the embedding: the bias itself is a kernel."""
        nn.init.xavier_uniform_(self.kernels.weight, gain=0.1)
        split = self.dim * self.hidden
        nn.init.xavier_uniform_(self.kernels.bias.data[:split].view(self.dim, self.hidden))
        nn.init.xavier_uniform_(self.kernels.bias.data[split:].view(self.hidden, self.out))

    def forward(self, roi_feats: Tensor, reid_tokens: Tensor) -> Tensor:
        """Returns (M, C) for roi_feats (M, S, C) and reid_tokens (M, C)."""
        with torch.autocast(roi_feats.device.type, enabled=False):
            kernel1, kernel2 = self.kernels(reid_tokens.float()).split(
                [self.dim * self.hidden, self.hidden * self.out], dim=1
            )
            x = torch.bmm(roi_feats.float(), kernel1.view(-1, self.dim, self.hidden))
            x = F.relu(self.norm1(x))
            x = torch.bmm(x, kernel2.view(-1, self.hidden, self.out))
            x = F.relu(self.norm2(x))
        return self.join(x.flatten(1))


class StaticProjection(nn.Module):
    """What remains of DC without dynamic kernels: each cell to C' channels, then all cells to C."""

    def __init__(self, dim: int, num_cells: int, out: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, out)
        self.norm = nn.LayerNorm(out)
        self.join = nn.Linear(num_cells * out, dim)

    def forward(self, roi_feats: Tensor) -> Tensor:
        """Returns (M, C) for roi_feats (M, S, C)."""
        return self.join(F.relu(self.norm(self.reduce(roi_feats))).flatten(1))


class WindowCrossAttention(nn.MultiheadAttention):
    """CA: each embedding attends to the cells of its own window.

    With one query per window, keys and values need not be computed: the key projection is applied
    to the query, and the value projection to the attended sum. Output and weights are those of
    ``nn.MultiheadAttention`` at a twentieth of its cost. (The key bias shifts all scores of a query
    equally, so it has no effect.)
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, batch_first=True)

    def forward(self, tokens: Tensor, windows: Tensor) -> Tensor:
        """Returns (M, C) for tokens (M, C) and windows (M, S, C)."""
        weight_q, weight_k, weight_v = self.in_proj_weight.chunk(3)
        bias_q, _, bias_v = self.in_proj_bias.chunk(3)
        shape = (self.num_heads, self.head_dim, self.embed_dim)

        query = F.linear(tokens, weight_q, bias_q) * self.head_dim**-0.5
        query = query.view(-1, self.num_heads, self.head_dim).transpose(0, 1)
        query = torch.bmm(query, weight_k.view(shape)).transpose(0, 1)  # (M, heads, C)
        attention = torch.bmm(query, windows.transpose(1, 2)).softmax(dim=-1)
        seen = torch.bmm(attention, windows).transpose(0, 1)  # (heads, M, C)
        value = torch.bmm(seen, weight_v.view(shape).transpose(1, 2)).transpose(0, 1)
        return self.out_proj(value.flatten(1) + bias_v)


class CollaborativeDenoisingLayer(nn.Module):
    """Refines the detection feature with the embedding and vice versa.

    Args:
        dim: Feature channels C.
        num_cells: Cells S of a pooled window.
        embed_dim: Embedding dimension D.
        heads: Attention heads of SA and CA.
        use_sa: Enables SA, see Table IV (b).
        use_dc: Enables DC.
        use_ca: Enables CA.
        sa_over: Tokens of SA, ``proposals`` or ``cells``.
        dc_hidden: Channels between the two dynamic kernels.
        dc_out: Channels after the second dynamic kernel.
        conditioning_init: Initialization of time modulation and kernels, ``small`` or ``xavier``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_cells: int,
        embed_dim: int,
        heads: int = 8,
        use_sa: bool = True,
        use_dc: bool = True,
        use_ca: bool = True,
        sa_over: str = "proposals",
        dc_hidden: int = 16,
        dc_out: int = 16,
        conditioning_init: str = "small",
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"MODEL.PSDIFF.CDL.HEADS is {heads}, which does not divide the {dim} channels of "
                "the features (MODEL.FPN.OUT_CHANNELS)."
            )
        check_choice("CDL.CONDITIONING_INIT", conditioning_init, ("small", "xavier"))
        self.conditioning_init = conditioning_init
        self.position = nn.Parameter(torch.zeros(1, 1, num_cells, dim))
        self.reid_in = nn.Linear(embed_dim, dim)
        self.sa = ProposalSelfAttention(dim, heads, sa_over) if use_sa else None
        self.dc = self.flat = None
        if use_dc:
            self.dc = DynamicConvolution(dim, num_cells, dc_hidden, dc_out)
        else:  # the detection feature still has to know where in the window things are
            self.flat = StaticProjection(dim, num_cells, dc_out)
        self.ca = WindowCrossAttention(dim, heads) if use_ca else None
        self.det_norm = nn.LayerNorm(dim)
        self.reid_norm = nn.LayerNorm(dim)
        # Time enters as scale and shift of F_c.
        self.time_mlp = nn.Sequential(nn.SiLU(), nn.Linear(4 * dim, 2 * 2 * dim))
        nn.init.trunc_normal_(self.position, std=0.02)

    def init_conditioning(self) -> None:
        """Zero-initializes the influence of the time, and reduces that of the embedding.

        Kernels generated from a random embedding would hide the RoI features from later layers.
        """
        if self.conditioning_init == "xavier":
            return
        nn.init.zeros_(self.time_mlp[-1].weight)
        nn.init.zeros_(self.time_mlp[-1].bias)
        if self.dc is not None:
            self.dc.init_static()

    def forward(
        self, roi_feats: Tensor, reid_tokens: Tensor, time_embedding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes the collaborative feature.

        Args:
            roi_feats: Pooled features F_d (B, N, S, C).
            reid_tokens: Noisy embeddings F_r (B, N, D), divided by the signal scale.
            time_embedding: Time embedding (B, 4C).

        Returns:
            Time-modulated F_c (B, N, 2C) and the refined detection feature (B, N, C).
        """
        num_images, num_proposals = roi_feats.shape[:2]
        roi_feats = roi_feats + self.position
        if self.sa is not None:
            roi_feats = self.sa(roi_feats)
        windows = roi_feats.flatten(0, 1)
        tokens = self.reid_in(reid_tokens).flatten(0, 1)

        det_feats = windows.mean(dim=1)
        if self.dc is not None:
            det_feats = det_feats + self.dc(windows, tokens)
        if self.flat is not None:
            det_feats = det_feats + self.flat(windows)
        det_feats = self.det_norm(det_feats)

        if self.ca is not None:
            tokens = tokens + self.ca(tokens, windows)
        reid_feats = self.reid_norm(tokens)

        collaborative = torch.cat([det_feats, reid_feats], dim=1)
        collaborative = collaborative.view(num_images, num_proposals, -1)
        scale, shift = self.time_mlp(time_embedding).unsqueeze(1).chunk(2, dim=-1)
        collaborative = collaborative * (1 + scale) + shift
        return collaborative, det_feats.view(num_images, num_proposals, -1)
