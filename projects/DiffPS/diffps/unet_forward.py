# SPDX-License-Identifier: Apache-2.0
"""Runs the frozen UNet and returns the requested activations.

Shape shorthand: B images, (h, w) cells of the latent, C channels, T tokens, D width of the text.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffps.attention import upcast_attention, use_fused_attention, word_map
from diffps.hooks import ActivationTap, Layer
from diffps.text import TextConditioning

logger = logging.getLogger(__name__)

_KEY = "MODEL.DIFFPS.BACKBONE"
NONFINITE_POLICIES = ("upcast", "raise")


class UNetFeatures:
    """The UNet with its condition, without being a module: nothing to train or to save.

    Maps are raw probabilities of one word.

    Args:
        unet: ``UNet2DConditionModel``; its attention is replaced by fused attention, in place.
        layers: Layers of this UNet to return.
        text: Condition of the UNet.
        timestep: Timestep given to the UNet.
        latent_stride: Pixels of the image per cell of the latent.
        map_heads: Heads that maps are averaged over; empty for all.
        truncate: Whether to end the forward pass after the last of ``layers``.
        upcast: Whether to keep attention layers in float32.
        on_nonfinite: ``upcast`` or ``raise``; see :meth:`__call__`.
        compile_blocks: Whether to ``torch.compile`` the transformer blocks without recorded layers.
    """

    def __init__(
        self,
        unet: nn.Module,
        layers: Sequence[Layer],
        text: TextConditioning,
        *,
        timestep: int,
        latent_stride: int = 8,
        map_heads: Sequence[int] = (),
        truncate: bool = True,
        upcast: bool = False,
        on_nonfinite: str = "upcast",
        compile_blocks: bool = False,
    ) -> None:
        if on_nonfinite not in NONFINITE_POLICIES:
            raise ValueError(f"{_KEY}.NONFINITE is {on_nonfinite!r}; allowed: {NONFINITE_POLICIES}")
        self.unet, self.text, self.timestep = unet, text, timestep
        self.map_heads, self.truncate = list(map_heads), truncate
        self.on_nonfinite = on_nonfinite
        self.dtype = next(unet.parameters()).dtype
        self.upcast = False
        for layer in layers:
            wrong = [h for h in self.map_heads if not 0 <= h < layer.heads]
            if layer.kind == "map" and wrong:
                raise ValueError(
                    f"{_KEY}.ATTN.HEADS is {self.map_heads}, but {layer.name} has heads 0 to "
                    f"{layer.heads - 1}."
                )
        use_fused_attention(unet, text.context)
        if upcast:
            self._upcast()
        self.tap = ActivationTap(list(layers), latent_stride, self._map)
        self.tap.attach(unet)
        if compile_blocks:
            compile_untapped_blocks(unet)

    @torch.no_grad()
    def __call__(self, latents: Tensor, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Runs the UNet.

        Args:
            latents: (B, L, h, w).
            image_size: Height and width of the images in pixels, part of the condition in SDXL.

        Returns:
            Layer name -> (B, C, h', w'), in the order of ``layers``; maps in float32, everything
            else in the UNet's dtype (attention layers in float32 when upcast).

        Raises:
            FloatingPointError: If activations are infinite or NaN. If ``on_nonfinite`` is
                ``upcast``, float16 is first retried with attention in float32, which then stays.
        """
        outputs = self.run(latents, image_size, self.truncate)
        bad = nonfinite_names(outputs)
        if (
            bad
            and self.on_nonfinite == "upcast"
            and self.dtype == torch.float16
            and not self.upcast
        ):
            logger.warning(
                f"float16 overflowed in the UNet ({', '.join(bad)}); its attention layers are "
                f"computed in float32 from now on. {_KEY}.UPCAST_ATTENTION True does so from the "
                "start, DTYPE bfloat16 avoids it."
            )
            self._upcast()
            outputs = self.run(latents, image_size, self.truncate)
            bad = nonfinite_names(outputs)
        if bad:
            raise FloatingPointError(
                f"infinities or NaN in the UNet's activations {', '.join(bad)} with {_KEY}.DTYPE "
                f"{str(self.dtype).removeprefix('torch.')}"
                f"{' and attention in float32' if self.upcast else ''}. Set DTYPE to 'bfloat16' "
                "or 'float32'; if that does not help, the weights are damaged."
            )
        return outputs

    def run(self, latents: Tensor, image_size: Sequence[int], truncate: bool) -> dict[str, Tensor]:
        """Like :meth:`__call__`, without the check of the values."""
        batch, device = len(latents), latents.device
        context = self.text.context.to(device, self.dtype).expand(batch, -1, -1)
        height, width = latents.shape[2:]
        with self.tap.record((height, width), truncate) as outputs:
            self.unet(
                latents.to(self.dtype),
                torch.tensor(float(self.timestep), device=device),
                encoder_hidden_states=context,
                added_cond_kwargs=self._added_condition(batch, image_size, device),
                return_dict=False,
            )
        return {layer.name: outputs[layer.name] for layer in self.tap.layers}

    def _added_condition(
        self, batch: int, image_size: Sequence[int], device: torch.device
    ) -> dict[str, Tensor] | None:
        """Returns the additional condition of SDXL: the whole image, uncropped, at its own size."""
        if self.text.pooled is None:
            return None
        time_ids = torch.tensor([*image_size, 0, 0, *image_size], device=device, dtype=self.dtype)
        pooled = self.text.pooled.to(device, self.dtype)
        return {
            "text_embeds": pooled.expand(batch, -1),
            "time_ids": time_ids.expand(batch, -1),
        }

    def _map(self, layer: Layer, query: Tensor) -> Tensor:
        return self.word_map(layer, query, self.map_heads, self.text.token)

    def word_map(self, layer: Layer, query: Tensor, heads: Sequence[int], token: int) -> Tensor:
        """Returns the attention (B, 1, N) of a token, from the query (B, N, C) of a layer."""
        attn = self.unet.get_submodule(layer.module.rpartition(".")[0])
        context = self.text.context.to(query.device, attn.to_k.weight.dtype)
        return word_map(query, attn.to_k(context), attn.heads, heads, token)

    def head_maps(self, layer: Layer, query: Tensor, token: int) -> Tensor:
        """Returns the attention (B, E, h, w) of a token per head, from a query (B, C, h, w)."""
        tokens = query.flatten(2).transpose(1, 2)
        maps = [self.word_map(layer, tokens, [head], token) for head in range(layer.heads)]
        return torch.cat(maps, dim=1).unflatten(2, query.shape[2:])

    def _upcast(self) -> None:
        upcast_attention(self.unet)
        self.upcast = True


def nonfinite_names(outputs: dict[str, Tensor]) -> list[str]:
    """Returns the names of tensors with infinities or NaN; waits for the device only once."""
    if not outputs:
        return []
    finite = torch.stack([x.isfinite().all() for x in outputs.values()]).tolist()
    return [name for name, good in zip(outputs, finite, strict=True) if not good]


def compile_untapped_blocks(unet: nn.Module, backend: str = "inductor") -> int:
    """Compiles the transformer blocks without hooks, in place; returns their number.

    Hooks inside compiled code would break its graph, and the forward pass ends with an exception
    raised by one. ResNet blocks are not compiled: nearly all differ in shape, which exceeds the
    number of variants that torch.compile keeps.
    """
    from diffusers.models.attention import BasicTransformerBlock

    blocks = [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
    blocks = [b for b in blocks if not any(m._forward_hooks for m in b.modules())]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)
