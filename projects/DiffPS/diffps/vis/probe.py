# SPDX-License-Identifier: Apache-2.0
"""The frozen model, run for other words, layers, heads and timesteps than a config selects.

Shape shorthand: C channels, E attention heads, (h, w) cells of a layer.

Loading, hooks, noise and attention are those of the backbone, so the settings of the config give
the same values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from diffps.hooks import Layer, find_layers, list_layers
from diffps.latents import LatentNoiser, encode_moments, image_digest
from diffps.loading import check_parts, open_folder, parse_dtype
from diffps.text import TextConditioning, encode_text
from diffps.unet_forward import UNetFeatures, nonfinite_names


@dataclass(frozen=True)
class ProbedImage:
    """An image encoded by the VAE.

    Attributes:
        moments: Posterior of the VAE, (1, 2 L, H / 8, W / 8).
        size: Height and width in pixels, rounded up to what the UNet takes.
        key: Seed of the noise.
    """

    moments: Tensor
    size: tuple[int, int]
    key: str


class DiffusionProbe:
    """Loads the diffusion model of a config and reads its attention and activations.

    Args:
        cfg: Config with ``MODEL.DIFFPS.BACKBONE``.
        noise: Noise to add, see :class:`diffps.latents.LatentNoiser`. Default: that of the config.
    """

    def __init__(self, cfg: CfgNode, noise: str | None = None) -> None:
        self.config = config = cfg.MODEL.DIFFPS.BACKBONE
        self.folder = open_folder(config)
        dtype = parse_dtype(config.DTYPE)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.unet = self.folder.load_unet(dtype, config.FAMILY).to(self.device)
        self.vae = self.folder.load_vae(dtype).to(self.device)
        check_parts(self.unet, self.vae, self.unet.config.cross_attention_dim, config.MODEL)
        self.noise = noise or config.NOISE
        self.latent_stride = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.layers = list_layers(self.unet, self.latent_stride)
        self._alphas_cumprod = self.folder.load_alphas_cumprod()

    @torch.no_grad()
    def encode(self, image: Tensor) -> ProbedImage:
        """Encodes an image (3, H, W), RGB from 0 to 255, with the VAE."""
        multiple = max(layer.stride for layer in self.layers.values())
        x = (image.to(self.device).float() - 127.5) / 127.5
        height, width = (-(-side // multiple) * multiple for side in x.shape[1:])
        padded = F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1]))[None]
        moments = encode_moments(self.vae, padded)
        if nonfinite_names({"": moments}):
            raise FloatingPointError(
                "infinities or NaN in the VAE: set MODEL.DIFFPS.BACKBONE.DTYPE to 'bfloat16' or "
                "'float32'."
            )
        return ProbedImage(moments, (height, width), image_digest(x))

    def find_maps(self, places: Sequence[str], key: str) -> list[Layer]:
        """Returns cross-attention layers by place (``u3r0``) or name; errors mention ``key``."""
        names = [name if "map" in name else f"{name}_map" for name in places]
        return find_layers(names, self.layers, key, ("map",))

    def find_features(self, names: Sequence[str], key: str) -> list[Layer]:
        """Returns other layers by name; errors name the option ``key``."""
        return find_layers(names, self.layers, key, ("q", "k", "v", "xq", "vit", "res"))

    def attention(
        self, image: ProbedImage, prompt: str, words: Sequence[str], layers: Sequence[Layer],
        timestep: int = 0,
    ) -> dict[tuple[str, str], Tensor]:  # fmt: skip
        """Returns the attention of words of a prompt.

        Returns:
            (word, name of the layer) -> (E, h, w) probabilities, float32, on the CPU.

        Raises:
            ValueError: If a word has several tokens, or is not in the prompt.
        """
        texts = {word: encode_text(self.folder, prompt, map_word=word) for word in words}
        if not texts:
            return {}
        queries = [self.layers[layer.name.removesuffix("map") + "xq"] for layer in layers]
        features = self._features(next(iter(texts.values())), queries, timestep)
        outputs = features(self._latent(image, timestep), image.size)
        return {
            (word, layer.name): features.head_maps(layer, outputs[query.name], text.token)[0].cpu()
            for layer, query in zip(layers, queries, strict=True)
            for word, text in texts.items()
        }

    def features(
        self, image: ProbedImage, prompt: str, layers: Sequence[Layer], timesteps: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """Returns activations for several timesteps: name -> (C, h, w) float32 on the CPU."""
        text = encode_text(self.folder, prompt)
        results = []
        for timestep in timesteps:
            latent = self._latent(image, timestep)
            outputs = self._features(text, layers, timestep)(latent, image.size)
            results.append({name: x[0].float().cpu() for name, x in outputs.items()})
        return results

    def _features(
        self, text: TextConditioning, layers: Sequence[Layer], timestep: int
    ) -> UNetFeatures:
        """Returns the UNet with this text; it must be used before the next one is made."""
        return UNetFeatures(
            self.unet,
            layers,
            text,
            timestep=timestep,
            latent_stride=self.latent_stride,
            upcast=self.config.UPCAST_ATTENTION,
        )

    def _latent(self, image: ProbedImage, timestep: int) -> Tensor:
        scale, sample = self.vae.config.scaling_factor, self.config.VAE_SAMPLE
        noiser = LatentNoiser(self._alphas_cumprod, timestep, self.noise, sample, scale)
        return noiser(image.moments, [image.key])
