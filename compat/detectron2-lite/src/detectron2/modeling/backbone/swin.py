# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer: attention in windows that shift from block to block.

Shape shorthand: N images, H x W tokens of a stage, C channels, h heads, s window side,
T = s * s tokens per window, B windows of all images (B = N * windows per image, image first).
"""

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from .backbone import Backbone

# Added to the attention logits between tokens that the cyclic shift made neighbors.
_MASKED_LOGIT = -100.0


def _to_pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class Mlp(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        in_features: Number of input channels.
        hidden_features: Number of hidden channels, by default ``in_features``.
        out_features: Number of output channels, by default ``in_features``.
        act_layer: Class of the activation.
        drop: Dropout rate after each linear layer.
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
        """Maps (..., Cin) to (..., Cout)."""
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


def window_partition(x, window_size):
    """Maps (N, H, W, C), with sides that are multiples of s, to (B, s, s, C)."""
    n, height, width, channels = x.shape
    s = window_size
    x = x.view(n, height // s, s, width // s, s, channels)
    return x.transpose(2, 3).contiguous().view(-1, s, s, channels)


def window_reverse(windows, window_size, H, W):
    """Maps (B, s, s, C) to (N, H, W, C), the inverse of ``window_partition``."""
    s = window_size
    rows, columns = H // s, W // s
    n = windows.shape[0] // (rows * columns)
    x = windows.view(n, rows, columns, s, s, -1)
    return x.transpose(2, 3).contiguous().view(n, H, W, -1)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a relative position bias.

    Args:
        dim: Number of channels C.
        window_size: (height, width) in tokens.
        num_heads: Number of heads h.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor of the queries, by default (C / h) ** -0.5.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the output.
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
        rows = torch.arange(height).repeat_interleave(width)
        columns = torch.arange(width).repeat(height)
        dy = rows[:, None] - rows[None] + height - 1
        dx = columns[:, None] - columns[None] + width - 1
        # (T, T): row of the bias table for each pair of tokens
        self.register_buffer("relative_position_index", dy * (2 * width - 1) + dx)
        # The order of the random draws must be that of Detectron2.
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x, mask=None):
        """Computes the attention.

        Args:
            x: (B, T, C) tokens.
            mask: (windows per image, T, T) mask, added to the logits, or None.

        Returns:
            (B, T, C) tokens.
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


class SwinTransformerBlock(nn.Module):
    """Window attention and an MLP, each with a shortcut.

    The caller sets ``H`` and ``W``, the size of the token grid, before each forward.

    Args:
        dim: Number of channels C.
        num_heads: Number of heads h.
        window_size: Window side s.
        shift_size: Shift of the windows in tokens, less than s.
        mlp_ratio: Ratio of hidden channels of the MLP to C.
        qkv_bias: See ``WindowAttention``.
        qk_scale: See ``WindowAttention``.
        drop: Dropout rate of the projections.
        attn_drop: See ``WindowAttention``.
        drop_path: Stochastic depth rate.
        act_layer: Class of the activation.
        norm_layer: Class of the normalization.
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
            dim, _to_pair(window_size), num_heads, qkv_bias, qk_scale, attn_drop, proj_drop=drop
        )
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.H = None
        self.W = None

    def forward(self, x, mask_matrix):
        """Runs the block.

        Args:
            x: (N, H * W, C) tokens.
            mask_matrix: Mask of shifted windows from ``BasicLayer``.

        Returns:
            (N, H * W, C) tokens.
        """
        n, length, channels = x.shape
        assert length == self.H * self.W, f"{length} tokens do not fit {self.H} x {self.W}"
        s, shift = self.window_size, self.shift_size
        branch = self.norm1(x).view(n, self.H, self.W, channels)
        branch = F.pad(branch, (0, 0, 0, -self.W % s, 0, -self.H % s))
        height, width = branch.shape[1:3]
        if shift > 0:
            branch = torch.roll(branch, shifts=(-shift, -shift), dims=(1, 2))
        windows = window_partition(branch, s).view(-1, s * s, channels)
        windows = self.attn(windows, mask=mask_matrix if shift > 0 else None)
        branch = window_reverse(windows.view(-1, s, s, channels), s, height, width)
        if shift > 0:
            branch = torch.roll(branch, shifts=(shift, shift), dims=(1, 2))
        branch = branch[:, : self.H, : self.W].reshape(n, length, channels)
        x = x + self.drop_path(branch)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Merges each 2 x 2 group of tokens and doubles the number of channels.

    Args:
        dim: Number of channels C.
        norm_layer: Class of the normalization of the 4 C concatenated channels.
    """

    def __init__(self, dim, norm_layer=nn.LayerNorm):
        super().__init__()
        self.dim = dim
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x, H, W):
        """Maps (N, H * W, C) to (N, ceil(H / 2) * ceil(W / 2), 2 C)."""
        n, length, channels = x.shape
        assert length == H * W, f"{length} tokens do not fit {H} x {W}"
        x = F.pad(x.view(n, H, W, channels), (0, 0, 0, W % 2, 0, H % 2))
        # the channel order of the checkpoints: left column, then right column
        x = torch.cat([x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)], dim=-1)
        return self.reduction(self.norm(x.view(n, -1, 4 * channels)))


class PatchEmbed(nn.Module):
    """Projects each patch of an image to a token.

    Args:
        patch_size: Side of a patch in pixels.
        in_chans: Number of channels of the image.
        embed_dim: Number of channels C of a token.
        norm_layer: Class of the normalization of tokens, or None.
    """

    def __init__(self, patch_size=4, in_chans=3, embed_dim=96, norm_layer=None):
        super().__init__()
        self.patch_size = _to_pair(patch_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, stride=self.patch_size)
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def forward(self, x):
        """Maps (N, in_chans, height, width), padded to whole patches, to (N, C, H, W)."""
        height, width = self.patch_size
        x = self.proj(F.pad(x, (0, -x.size(3) % width, 0, -x.size(2) % height)))
        if self.norm is not None:
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x


class BasicLayer(nn.Module):
    """A stage: blocks with windows that are shifted in every second block, then a downsampling.

    Args:
        dim: See ``SwinTransformerBlock``.
        depth: Number of blocks.
        num_heads: See ``SwinTransformerBlock``.
        window_size: See ``SwinTransformerBlock``.
        mlp_ratio: See ``SwinTransformerBlock``.
        qkv_bias: See ``SwinTransformerBlock``.
        qk_scale: See ``SwinTransformerBlock``.
        drop: See ``SwinTransformerBlock``.
        attn_drop: See ``SwinTransformerBlock``.
        drop_path: Stochastic depth rate, or list of the rates of the blocks.
        norm_layer: See ``SwinTransformerBlock``.
        downsample: Class with the arguments (dim, norm_layer), or None.
        use_checkpoint: Whether to use gradient checkpointing.
    """

    def __init__(
        self,
        dim,
        depth,
        num_heads,
        window_size=7,
        mlp_ratio=4.0,
        qkv_bias=True,
        qk_scale=None,
        drop=0.0,
        attn_drop=0.0,
        drop_path=0.0,
        norm_layer=nn.LayerNorm,
        downsample=None,
        use_checkpoint=False,
    ):
        super().__init__()
        self.window_size = window_size
        self.shift_size = window_size // 2
        self.depth = depth
        self.use_checkpoint = use_checkpoint
        rates = drop_path if isinstance(drop_path, list) else [drop_path] * depth
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim=dim,
                num_heads=num_heads,
                window_size=window_size,
                shift_size=0 if index % 2 == 0 else self.shift_size,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop,
                attn_drop=attn_drop,
                drop_path=rates[index],
                norm_layer=norm_layer,
            )
            for index in range(depth)
        )
        self.downsample = None if downsample is None else downsample(dim=dim, norm_layer=norm_layer)

    def forward(self, x, H, W):
        """Runs the stage.

        Args:
            x: (N, H * W, C) tokens.
            H: Height of the token grid.
            W: Width of the token grid.

        Returns:
            (output of the blocks, H, W, input of the next stage, its H, its W).
        """
        s = self.window_size
        band_y, band_x = self._bands(H + -H % s, x), self._bands(W + -W % s, x)
        regions = (3 * band_y[:, None] + band_x[None])[None, :, :, None]
        regions = window_partition(regions, s).view(-1, s * s)
        # (windows per image, T, T): negative between tokens of different regions of the image
        across = regions[:, None, :] != regions[:, :, None]
        mask = torch.zeros_like(across, dtype=torch.float32).masked_fill(across, _MASKED_LOGIT)
        for block in self.blocks:
            block.H, block.W = H, W
            if self.use_checkpoint:
                x = torch.utils.checkpoint.checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        if self.downsample is None:
            return x, H, W, x, H, W
        return x, H, W, self.downsample(x, H, W), (H + 1) // 2, (W + 1) // 2

    def _bands(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """Returns (length,): 1 and 2 in the two parts of the last window, otherwise 0."""
        position = torch.arange(length, device=like.device)
        in_last_window = position >= length - self.window_size
        wrapped = position >= length - self.shift_size
        return in_last_window.float() + wrapped.float()


class SwinTransformer(Backbone):
    """Swin Transformer (Liu et al., ICCV 2021). The output "p{i}" is stage i, of stride 4 * 2**i.

    Args:
        pretrain_img_size: Size of the images for which ``ape`` was trained.
        patch_size: Side of a patch in pixels.
        in_chans: Number of channels of the image.
        embed_dim: Number of channels C of the first stage, doubled in each further stage.
        depths: Number of blocks of each stage.
        num_heads: Number of heads of each stage.
        window_size: See ``SwinTransformerBlock``.
        mlp_ratio: See ``SwinTransformerBlock``.
        qkv_bias: See ``SwinTransformerBlock``.
        qk_scale: See ``SwinTransformerBlock``.
        drop_rate: Dropout rate of tokens.
        attn_drop_rate: Dropout rate of attention weights.
        drop_path_rate: Stochastic depth rate of the last block; the rates increase from 0.
        norm_layer: See ``SwinTransformerBlock``.
        ape: Whether to add an absolute position embedding.
        patch_norm: Whether to normalize the tokens of the patches.
        out_indices: Stages whose outputs are returned.
        frozen_stages: 0 freezes the patch embedding, 1 also ``ape``, and a larger number also the
            first ``frozen_stages - 1`` stages; -1 freezes nothing.
        use_checkpoint: See ``BasicLayer``.
    """

    def __init__(
        self,
        pretrain_img_size=224,
        patch_size=4,
        in_chans=3,
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        mlp_ratio=4.0,
        qkv_bias=True,
        qk_scale=None,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.2,
        norm_layer=nn.LayerNorm,
        ape=False,
        patch_norm=True,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        use_checkpoint=False,
    ):
        super().__init__()
        self.pretrain_img_size = pretrain_img_size
        self.num_layers = len(depths)
        self.embed_dim = embed_dim
        self.ape = ape
        self.patch_norm = patch_norm
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.num_features = [embed_dim * 2**i for i in range(self.num_layers)]

        self.patch_embed = PatchEmbed(
            patch_size, in_chans, embed_dim, norm_layer if patch_norm else None
        )
        if ape:
            sides = zip(_to_pair(pretrain_img_size), _to_pair(patch_size), strict=True)
            grid = [side // patch for side, patch in sides]
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, *grid))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(p=drop_rate)

        rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.layers = nn.ModuleList(
            BasicLayer(
                dim=self.num_features[i],
                depth=depths[i],
                num_heads=num_heads[i],
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rates[sum(depths[:i]) : sum(depths[: i + 1])],
                norm_layer=norm_layer,
                downsample=PatchMerging if i < self.num_layers - 1 else None,
                use_checkpoint=use_checkpoint,
            )
            for i in range(self.num_layers)
        )
        for i in out_indices:
            self.add_module(f"norm{i}", norm_layer(self.num_features[i]))

        self._freeze_stages()
        self.apply(self._init_weights)
        self._out_features = [f"p{i}" for i in self.out_indices]
        self._out_feature_channels = {f"p{i}": self.num_features[i] for i in self.out_indices}
        self._out_feature_strides = {f"p{i}": 2 ** (i + 2) for i in self.out_indices}
        self._size_divisibility = 32

    def _freeze_stages(self):
        level = self.frozen_stages
        frozen = [self.patch_embed] if level >= 0 else []
        if level >= 2:
            frozen += [self.pos_drop, *self.layers[: level - 1]]
        for part in frozen:
            part.eval().requires_grad_(False)
        if self.ape and level >= 1:
            self.absolute_pos_embed.requires_grad_(False)

    def _init_weights(self, m):
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.LayerNorm):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)

    @property
    def size_divisibility(self):
        """32. This property of Swin fails in Detectron2 0.6, where only the FPN's can be used."""
        return self._size_divisibility

    def forward(self, x):
        """Computes the features of an image batch.

        Args:
            x: (N, in_chans, height, width) images.

        Returns:
            Dict from "p{i}" to (N, C_i, H_i, W_i) features, finest first.
        """
        x = self.patch_embed(x)
        height, width = x.shape[2:]
        if self.ape:
            x = x + F.interpolate(self.absolute_pos_embed, size=(height, width), mode="bicubic")
        x = self.pos_drop(x.flatten(2).transpose(1, 2))

        outputs = {}
        for i, layer in enumerate(self.layers):
            out, out_height, out_width, x, height, width = layer(x, height, width)
            if i in self.out_indices:
                out = getattr(self, f"norm{i}")(out)
                out = out.view(-1, out_height, out_width, self.num_features[i])
                outputs[f"p{i}"] = out.permute(0, 3, 1, 2).contiguous()
        return outputs
