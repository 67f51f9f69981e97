# SPDX-License-Identifier: Apache-2.0
"""The frozen model run the plain way, which is how the release runs it.

Shape shorthand: B images, (H, W) pixels, (h, w) cells of a map, N query tokens (cells), T key
tokens, E heads, C channels, F = C / E.

It is what :class:`diffps.backbone.DiffusionBackbone` must equal, and what it is measured against:
the VAE encodes every image, the UNet runs to its end, every attention is an explicit softmax, and
of the attention map that is wanted all heads and tokens are kept. Nothing here is for use.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from diffps.hooks import Layer, list_layers


class ExplicitAttention:
    """Attention processor of diffusers that makes all probabilities, and may keep them.

    ``probabilities`` are those of the last call, (B, E, N, T); empty if there was none.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self.probabilities = torch.empty(0)

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C); ``encoder_hidden_states`` is the text (B, T, D), if any."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2)  # (B, E, N or T, F)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        # in float32, as autocast has it
        probabilities = scores.softmax(dim=-1, dtype=torch.float32)
        del scores
        probabilities = probabilities.to(q.dtype)
        if self.keep:
            self.probabilities = probabilities
        x = (probabilities @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](x)


class PlainBackbone(Backbone):
    """The same features as ``DiffusionBackbone`` gives by default, for images of one size."""

    def __init__(
        self,
        vae: nn.Module,
        unet: nn.Module,
        context: Tensor,
        layers: Sequence[Layer],
        map_layer: Layer,
        *,
        head: int,
        token: int,
        timestep: int,
        alpha_bar: float,
    ) -> None:
        """
        Args:
            vae, unet: as diffusers makes them; the processors of the UNet are replaced.
            context: (1, T, D) encoded prompt.
            layers: queries, keys and values wanted. map_layer: attention map, of ``head`` and
                ``token``.
            alpha_bar: share of signal power at ``timestep``.
        """
        super().__init__()
        self._frozen = [vae, unet]
        self.register_buffer("context", context, persistent=False)
        self.layers, self.map_layer = list(layers), map_layer
        self.head, self.token = head, token
        self.timestep, self.alpha_bar = timestep, alpha_bar
        self._divisibility = max(layer.stride for layer in list_layers(unet).values())
        unet.set_attn_processor(ExplicitAttention())
        self._keeping = ExplicitAttention(keep=True)
        unet.get_submodule(map_layer.module.rpartition(".")[0]).set_processor(self._keeping)

    @property
    def size_divisibility(self) -> int:
        return self._divisibility

    def _apply(self, fn, recurse: bool = True) -> "PlainBackbone":
        """Takes the frozen weights along when the model is moved."""
        for module in self._frozen:
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(
        self, images: Tensor, image_sizes: object = None, keys: object = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> name -> (B, C, h, w); nothing but the images is looked at."""
        return self.run_unet(self.encode(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the latents (B, 4, H / 8, W / 8), without noise."""
        vae = self._frozen[0]
        mean = vae.encode(images.to(self.context.dtype)).latent_dist.mean
        return self.alpha_bar**0.5 * vae.config.scaling_factor * mean

    @torch.no_grad()
    def run_unet(self, latents: Tensor) -> dict[str, Tensor]:
        """Latents -> name -> (B, C, h, w)."""
        unet, kept, handles = self._frozen[1], {}, []
        for layer in self.layers:
            module = unet.get_submodule(layer.module)
            hook = lambda _, args, output, name=layer.name: kept.update({name: output})  # noqa: E731
            handles.append(module.register_forward_hook(hook))
        unet(latents, self.timestep, self.context.expand(len(latents), -1, -1))
        for handle in handles:
            handle.remove()
        features = {}
        for layer in self.layers:
            cells = [side * 8 // layer.stride for side in latents.shape[2:]]
            tokens = kept[layer.name].transpose(1, 2)
            features[layer.name] = tokens.unflatten(2, cells).contiguous().float()
        features["attn"] = self._word_map(latents.shape[2:])
        return features

    def _word_map(self, latent_size: Sequence[int]) -> Tensor:
        """(B, 1, h, w) float32, stretched to [0, 1] per image."""
        cells = [side * 8 // self.map_layer.stride for side in latent_size]
        column = self._keeping.probabilities[:, self.head, :, self.token].float()
        low, high = column.amin(dim=1, keepdim=True), column.amax(dim=1, keepdim=True)
        column = (column - low) / (high - low).clamp_min(1e-20)
        return column.unflatten(1, cells)[:, None]
