# SPDX-License-Identifier: Apache-2.0
"""The frozen model computed as in the release, as a reference.

Shape shorthand: B images, (H, W) pixels, (h, w) cells of a map, N query tokens (cells), T key
tokens, E heads, C channels, F = C / E.

:class:`diffps.backbone.DiffusionBackbone` must give the same features and is compared in cost: here
the VAE encodes every image, the UNet runs to its end, every attention is an explicit softmax, and
all heads and tokens of the attention map are kept.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from diffps.hooks import Layer, list_layers


class ExplicitAttention:
    """Attention processor of diffusers that computes all probabilities.

    Args:
        keep: Whether to keep the probabilities of the last call.

    Attributes:
        probabilities: (B, E, N, T); empty before the first call.
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
        # in float32, as under autocast
        probabilities = scores.softmax(dim=-1, dtype=torch.float32)
        del scores
        probabilities = probabilities.to(q.dtype)
        if self.keep:
            self.probabilities = probabilities
        x = (probabilities @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](x)


class PlainBackbone(Backbone):
    """The default features of ``DiffusionBackbone``, for images of one size.

    Args:
        vae: VAE of diffusers.
        unet: UNet of diffusers; its attention processors are replaced.
        context: Encoded prompt, (1, T, D).
        layers: Layers of queries, keys and values to return.
        map_layer: Layer of the attention map.
        head: Head of the map.
        token: Token of the map.
        timestep: Timestep given to the UNet.
        alpha_bar: Share of signal power at ``timestep``.
    """

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
        """Multiple that the sides of images must be."""
        return self._divisibility

    def _apply(self, fn, recurse: bool = True) -> "PlainBackbone":
        """Also moves the frozen weights."""
        for module in self._frozen:
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(
        self, images: Tensor, image_sizes: object = None, keys: object = None
    ) -> dict[str, Tensor]:
        """Computes name -> (B, C, h, w) from images (B, 3, H, W) in [-1, 1]; ignores the rest."""
        return self.run_unet(self.encode(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encodes (B, 3, H, W) to latents (B, 4, H / 8, W / 8) without noise."""
        vae = self._frozen[0]
        mean = vae.encode(images.to(self.context.dtype)).latent_dist.mean
        return self.alpha_bar**0.5 * vae.config.scaling_factor * mean

    @torch.no_grad()
    def run_unet(self, latents: Tensor) -> dict[str, Tensor]:
        """Computes name -> (B, C, h, w) from latents."""
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
        """Returns the map, (B, 1, h, w) float32, stretched to [0, 1] per image."""
        cells = [side * 8 // self.map_layer.stride for side in latent_size]
        column = self._keeping.probabilities[:, self.head, :, self.token].float()
        low, high = column.amin(dim=1, keepdim=True), column.amax(dim=1, keepdim=True)
        column = (column - low) / (high - low).clamp_min(1e-20)
        return column.unflatten(1, cells)[:, None]
