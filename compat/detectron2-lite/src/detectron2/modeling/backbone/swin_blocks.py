# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the Swin Transformer; `swin.py` puts them together.

Shape shorthand: N images, H x W tokens of a stage, C channels, h heads, s window side,
T = s * s tokens per window, B windows of all images (B = N * windows per image, image first).
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth


def to_pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class Mlp(nn.Module):
    """Two linear layers with an activation in between.

    Args:
        in_features: channels of the input.
        hidden_features, out_features: by default like `in_features`.
        act_layer: class of the activation.
        drop: dropout after each linear layer.
    """

    def __init__(
        self, in_features, hidden_features=None, out_features=None, act_layer=nn.GELU, drop=0.0
    ):
        super().__init__()
        width = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, width)
        self.fc2 = nn.Linear(width, out_features or in_features)
        self.act = act_layer()
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        """(..., Cin) -> (..., Cout)."""
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


def window_partition(x, window_size):
    """(N, H, W, C), sides multiples of s -> (B, s, s, C)."""
    n, height, width, channels = x.shape
    s = window_size
    x = x.view(n, height // s, s, width // s, s, channels)
    return x.transpose(2, 3).contiguous().view(-1, s, s, channels)


def window_reverse(windows, window_size, H, W):
    """The inverse of `window_partition`: (B, s, s, C) -> (N, H, W, C)."""
    s = window_size
    rows, columns = H // s, W // s
    n = windows.shape[0] // (rows * columns)
    x = windows.view(n, rows, columns, s, s, -1)
    return x.transpose(2, 3).contiguous().view(n, H, W, -1)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias per relative position.

    Args:
        dim: C.
        window_size: (height, width) in tokens.
        num_heads: h.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor on the queries; by default (C / h) ** -0.5.
        attn_drop, proj_drop: dropout of the attention weights and of the output.
    """

    def __init__(
        self,
        dim,
        window_size,
        num_heads,
        qkv_bias=True,
        qk_scale=None,
        attn_drop=0.0,
        proj_drop=0.0,
    ):
        super().__init__()
        self.dim = dim
        self.window_size = window_size
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5

        height, width = window_size
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * height - 1) * (2 * width - 1), num_heads)
        )
        self.register_buffer("relative_position_index", _relative_position_index(height, width))
        # In this order: it fixes which random numbers each part draws.
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x, mask=None):
        """Attend.

        Args:
            x: (B, T, C).
            mask: (windows per image, T, T) added to the logits, or None.

        Returns:
            (B, T, C).
        """
        b, t, c = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, T, C / h)

        logits = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        logits = logits + bias.view(t, t, -1).permute(2, 0, 1)[None]
        if mask is not None:
            per_image = mask.shape[0]
            logits = logits.view(b // per_image, per_image, self.num_heads, t, t)
            logits = (logits + mask[None, :, None]).view(b, self.num_heads, t, t)
        weights = self.attn_drop(self.softmax(logits))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).reshape(b, t, c)))


def _relative_position_index(height: int, width: int) -> torch.Tensor:
    """(T, T) int64: row of the bias table for each pair of tokens in a window."""
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    dy = rows[:, None] - rows[None] + height - 1
    dx = columns[:, None] - columns[None] + width - 1
    return dy * (2 * width - 1) + dx


class SwinTransformerBlock(nn.Module):
    """Window attention and an MLP, each with a shortcut.

    The caller sets `H` and `W`, the size of the token grid, before each forward.

    Args:
        dim: C.
        num_heads: h.
        window_size: s.
        shift_size: how far windows are shifted, in tokens, below s.
        mlp_ratio: hidden channels of the MLP over C.
        qkv_bias, qk_scale, attn_drop: see `WindowAttention`.
        drop: dropout of the projections.
        drop_path: probability of skipping a branch for an image while training.
        act_layer, norm_layer: classes.
    """

    def __init__(
        self,
        dim,
        num_heads,
        window_size=7,
        shift_size=0,
        mlp_ratio=4.0,
        qkv_bias=True,
        qk_scale=None,
        drop=0.0,
        attn_drop=0.0,
        drop_path=0.0,
        act_layer=nn.GELU,
        norm_layer=nn.LayerNorm,
    ):
        super().__init__()
        assert 0 <= shift_size < window_size, "shift_size must be in 0 .. window_size - 1"
        self.dim = dim
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.mlp_ratio = mlp_ratio
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(
            dim, to_pair(window_size), num_heads, qkv_bias, qk_scale, attn_drop, proj_drop=drop
        )
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.H = None
        self.W = None

    def forward(self, x, mask_matrix):
        """Run the block.

        Args:
            x: (N, H * W, C).
            mask_matrix: mask for shifted windows, see `BasicLayer`.

        Returns:
            (N, H * W, C).
        """
        n, length, channels = x.shape
        assert length == self.H * self.W, f"{length} tokens are no grid of {self.H} x {self.W}"
        branch = self.norm1(x).view(n, self.H, self.W, channels)
        branch = self._attend(branch, mask_matrix).reshape(n, length, channels)
        x = x + self.drop_path(branch)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x, mask_matrix):
        """Pad to whole windows, shift, attend, and undo; (N, H, W, C) both ways."""
        s, shift = self.window_size, self.shift_size
        x = F.pad(x, (0, 0, 0, -self.W % s, 0, -self.H % s))
        height, width, channels = x.shape[1:]
        if shift > 0:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        windows = window_partition(x, s).view(-1, s * s, channels)
        windows = self.attn(windows, mask=mask_matrix if shift > 0 else None)
        x = window_reverse(windows.view(-1, s, s, channels), s, height, width)
        if shift > 0:
            x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
        return x[:, : self.H, : self.W].contiguous()


class PatchMerging(nn.Module):
    """Join each 2 x 2 group of tokens into one and double the channels.

    Args:
        dim: C.
        norm_layer: class of the normalization of the 4 C joined channels.
    """

    def __init__(self, dim, norm_layer=nn.LayerNorm):
        super().__init__()
        self.dim = dim
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x, H, W):
        """(N, H * W, C) -> (N, ceil(H / 2) * ceil(W / 2), 2 C); odd sides are padded by 0."""
        n, length, channels = x.shape
        assert length == H * W, f"{length} tokens are no grid of {H} x {W}"
        x = F.pad(x.view(n, H, W, channels), (0, 0, 0, W % 2, 0, H % 2))
        # Channel order of the checkpoints: down the left column, then down the right one.
        x = torch.cat([x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)], dim=-1)
        return self.reduction(self.norm(x.view(n, -1, 4 * channels)))


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each to a token.

    Args:
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        embed_dim: C.
        norm_layer: class of the normalization of tokens, or None.
    """

    def __init__(self, patch_size=4, in_chans=3, embed_dim=96, norm_layer=None):
        super().__init__()
        self.patch_size = to_pair(patch_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, stride=self.patch_size)
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def forward(self, x):
        """(N, in_chans, height, width) -> (N, C, H, W); the image is padded to whole patches."""
        height, width = self.patch_size
        x = self.proj(F.pad(x, (0, -x.size(3) % width, 0, -x.size(2) % height)))
        if self.norm is not None:
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x
