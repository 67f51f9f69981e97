# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer: attention inside windows that shift from block to block.

Shape shorthand: N images, H x W tokens of a stage, C channels, s window side, T = s * s tokens per
window.
"""

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F

from .backbone import Backbone
from .swin_blocks import (
    Mlp,
    PatchEmbed,
    PatchMerging,
    SwinTransformerBlock,
    WindowAttention,
    to_pair,
    window_partition,
    window_reverse,
)

__all__ = [
    "BasicLayer",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "SwinTransformer",
    "SwinTransformerBlock",
    "WindowAttention",
    "window_partition",
    "window_reverse",
]

# Added to attention logits between tokens that the cyclic shift put side by side although they
# are far apart in the image.
_MASKED_LOGIT = -100.0


class BasicLayer(nn.Module):
    """One stage: blocks whose windows are shifted in every second one, then a `downsample`.

    Args:
        dim, num_heads, window_size, mlp_ratio, qkv_bias, qk_scale, drop, attn_drop, norm_layer:
            see `SwinTransformerBlock`.
        depth: number of blocks.
        drop_path: one probability, or one per block.
        downsample: class that takes (dim, norm_layer), or None.
        use_checkpoint: compute blocks again in the backward pass to save memory.
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
        """Run the stage.

        Args:
            x: (N, H * W, C).
            H, W: size of the token grid.

        Returns:
            (output of the blocks, H, W, input of the next stage, its H, its W).
        """
        mask = self._shift_mask(H, W, x)
        for block in self.blocks:
            block.H, block.W = H, W
            if self.use_checkpoint:
                x = torch.utils.checkpoint.checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        if self.downsample is None:
            return x, H, W, x, H, W
        return x, H, W, self.downsample(x, H, W), (H + 1) // 2, (W + 1) // 2

    def _shift_mask(self, H: int, W: int, like: torch.Tensor) -> torch.Tensor:
        """(windows per image, T, T): 0 within a region of the image, strongly negative across."""
        s = self.window_size
        height, width = H + -H % s, W + -W % s
        band_y = self._bands(height, like)
        band_x = self._bands(width, like)
        regions = (3 * band_y[:, None] + band_x[None]).view(1, height, width, 1)
        regions = window_partition(regions, s).view(-1, s * s)
        across = regions[:, None, :] != regions[:, :, None]
        return torch.zeros_like(across, dtype=torch.float32).masked_fill(across, _MASKED_LOGIT)

    def _bands(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """(length,): 0 in untouched windows, 1 and 2 in the two halves of the last window."""
        position = torch.arange(length, device=like.device)
        in_last_window = position >= length - self.window_size
        wrapped = position >= length - self.shift_size
        return in_last_window.float() + wrapped.float()


class SwinTransformer(Backbone):
    """The backbone of "Swin Transformer"; output "p{i}" is stage i, of stride 4 * 2**i.

    Args:
        pretrain_img_size: image side that `ape` was trained for.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        embed_dim: C of the first stage; it doubles from stage to stage.
        depths, num_heads: blocks and heads per stage.
        window_size, mlp_ratio, qkv_bias, qk_scale, norm_layer: see `SwinTransformerBlock`.
        drop_rate, attn_drop_rate: dropout of tokens and of attention weights.
        drop_path_rate: probability of the last block; it grows linearly from 0.
        ape: add a learned absolute position embedding.
        patch_norm: normalize the tokens of the patches.
        out_indices: stages whose output is returned.
        frozen_stages: parts that are not trained: from 0 the patch embedding, from 1 also `ape`,
            from 2 also the first `frozen_stages - 1` stages; -1 none.
        use_checkpoint: see `BasicLayer`.
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
            self.absolute_pos_embed = self._make_position_embedding(patch_size)
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
        self._describe_outputs()
        self.apply(self._init_weights)

    def _make_position_embedding(self, patch_size) -> nn.Parameter:
        """(1, C, tokens high, tokens wide) of an image of the size used in pre-training."""
        sides, patches = to_pair(self.pretrain_img_size), to_pair(patch_size)
        grid = [side // patch for side, patch in zip(sides, patches, strict=True)]
        embedding = nn.Parameter(torch.zeros(1, self.embed_dim, *grid))
        return nn.init.trunc_normal_(embedding, std=0.02)

    def _describe_outputs(self):
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
        """32. (In Detectron2 at 0.6 reading this property of a Swin fails; code that must run
        on both reads it from the FPN around it.)
        """
        return self._size_divisibility

    def forward(self, x):
        """Features of an image batch.

        Args:
            x: (N, in_chans, height, width).

        Returns:
            A dict "p{i}" -> (N, C_i, H_i, W_i), finest first.
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
