# SPDX-License-Identifier: Apache-2.0
"""Fused attention of the frozen UNet, and the attention map of a single word.

Shape shorthand: B images, N query tokens (cells), T text tokens, E heads, C channels, F = C / E.

To read one column of one cross-attention map, the release replaces every attention of the UNet by
an explicit softmax over (B, E, N, N). Here all attention stays fused, and the column is computed
separately from the query and the key, in O(N T).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedAttention:
    """Attention processor of diffusers for the transformer blocks of a Stable Diffusion UNet.

    The projections may be kept in float32 in a float16 model (:func:`upcast_attention`).
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C); ``encoder_hidden_states`` is the text (B, T, D), if any."""
        dtype = attn.to_q.weight.dtype
        x = hidden_states.to(dtype)
        context = x if encoder_hidden_states is None else encoder_hidden_states.to(dtype)
        q = attn.to_q(x)
        k, v = self.keys_and_values(attn, context)
        q, k, v = (_split_heads(y, attn.heads) for y in (q, k, v))
        if len(k) != len(q):
            k, v = (y.expand(len(q), -1, -1, -1) for y in (k, v))
        x = F.scaled_dot_product_attention(q, k, v)
        x = attn.to_out[0](x.transpose(1, 2).flatten(2))
        return x.to(hidden_states.dtype)

    def keys_and_values(self, attn: nn.Module, context: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values, (B, T, C) each, before they are split into heads."""
        return attn.to_k(context), attn.to_v(context)


class FixedTextAttention(FusedAttention):
    """Cross-attention to a constant text: its keys and values are computed once.

    They are recomputed only after the layer has changed its device or type. Weights must not
    change.

    Args:
        context: Encoded text, (1, T, D), used instead of the text that the UNet passes.
    """

    def __init__(self, context: Tensor) -> None:
        self.context = context
        # ((device, dtype), (keys, values))
        self._made: tuple[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] | None = None

    def keys_and_values(
        self, attn: nn.Module, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns keys and values, (1, T, C) each."""
        wanted = attn.to_k.weight.device, attn.to_k.weight.dtype
        if self._made is None or self._made[0] != wanted:
            text = self.context.to(*wanted)
            self._made = wanted, super().keys_and_values(attn, text)
        return self._made[1]


def use_fused_attention(unet: nn.Module, text: Tensor | None = None) -> None:
    """Makes every attention of the UNet a :class:`FusedAttention`, in place.

    Args:
        unet: UNet to change.
        text: Constant encoded text, (1, T, D); every cross-attention then becomes a
            :class:`FixedTextAttention`.

    Raises:
        ValueError: If an attention layer has parts that those of Stable Diffusion do not have.
    """
    for name, module in _attentions(unet):
        extras = [
            part
            for part in ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k")
            if getattr(module, part, None) is not None and getattr(module, part) is not False
        ]
        if extras or module.residual_connection or module.rescale_output_factor != 1:
            raise ValueError(
                f"the attention layer {name} of this UNet is not one of Stable Diffusion: it also "
                f"has {extras or 'a residual connection or a rescaled output'}."
            )
        if text is not None and module.is_cross_attention:
            module.set_processor(FixedTextAttention(text))
        else:
            module.set_processor(FusedAttention())


def upcast_attention(unet: nn.Module) -> None:
    """Converts all attention layers to float32, in place."""
    for _, module in _attentions(unet):
        module.float()


def word_map(
    query: Tensor, key: Tensor, num_heads: int, heads: Sequence[int], token: int
) -> Tensor:
    """Computes the cross-attention probability of one text token at every cell.

    Args:
        query: Output of ``to_q``, (B, N, C).
        key: Output of ``to_k``, (1 or B, T, C).
        num_heads: E.
        heads: Heads to average; empty for all.
        token: Index into T.

    Returns:
        (B, 1, N) float32 in [0, 1].
    """
    q, k = _split_heads(query, num_heads), _split_heads(key, num_heads)
    if heads:
        q, k = q[:, list(heads)], k[:, list(heads)]
    scores = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1)[..., token].mean(dim=1, keepdim=True)


def minmax_normalize(maps: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Stretches the map of each image to [0, 1].

    Args:
        maps: (B, 1, H, W).
        sizes: (height, width) of each image without padding, in cells.

    Returns:
        (B, 1, H, W), 0 outside that part; a constant map becomes zeros.
    """
    inside = torch.zeros_like(maps, dtype=torch.bool)
    for target, (height, width) in zip(inside, sizes, strict=True):
        target[:, :height, :width] = True
    return minmax_normalize_inside(maps, inside)


def minmax_normalize_inside(maps: Tensor, inside: Tensor) -> Tensor:
    """Like :func:`minmax_normalize`, with a mask (B, 1, H, W) of the cells of each image."""
    low = maps.masked_fill(~inside, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = maps.masked_fill(~inside, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    # without a branch on the values, which would wait for the GPU
    return ((maps - low) / (high - low).clamp_min(1e-20)).masked_fill(~inside, 0)


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) -> (B, E, N, F)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _attentions(unet: nn.Module) -> list[tuple[str, nn.Module]]:
    from diffusers.models.attention_processor import Attention

    return [(name, m) for name, m in unet.named_modules() if isinstance(m, Attention)]
