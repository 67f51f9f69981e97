# SPDX-License-Identifier: Apache-2.0
"""The frozen model, asked for other words, layers, heads and timesteps than a config names.

Shape shorthand: C channels, E attention heads, (h, w) cells of a layer.

Loading, hooks, noise and attention are those of the backbone, so with the settings of the config
the same numbers come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from diffps.hooks import Layer, find_layers, list_layers
from diffps.latents import LatentNoiser, encode_moments, image_digest
from diffps.loading import DiffusionFolder, check_parts, parse_dtype
from diffps.text import TextConditioning, encode_text
from diffps.unet_forward import UNetFeatures, nonfinite_names


@dataclass(frozen=True)
class ProbedImage:
    """An image as the UNet is given it, but without noise."""

    moments: Tensor
    """(1, 2 L, H / 8, W / 8), of the VAE."""
    size: tuple[int, int]
    """Height and width in pixels, rounded up to what the UNet takes."""
    key: str
    """Seed of the noise."""


class DiffusionProbe:
    """Looks into the UNet of a config. It loads the model itself; let it go when done."""

    def __init__(
        self,
        folder: DiffusionFolder,
        unet: nn.Module,
        vae: nn.Module,
        *,
        noise: str = "seeded",
        vae_sample: bool = False,
        upcast: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        """
        Args:
            folder: where the text encoder and the noise schedule are.
            noise, vae_sample: see :class:`diffps.latents.LatentNoiser`.
            upcast: keep attention layers in float32.
        """
        self.folder, self.unet, self.vae = folder, unet.to(device), vae.to(device)
        self.noise, self.vae_sample, self.upcast = noise, vae_sample, upcast
        self.device = torch.device(device)
        self.latent_stride = 2 ** (len(vae.config.block_out_channels) - 1)
        self.layers = list_layers(unet, self.latent_stride)
        self._alphas_cumprod = folder.load_alphas_cumprod()

    @classmethod
    def from_config(cls, cfg: CfgNode, noise: str | None = None) -> "DiffusionProbe":
        """Loads the model of ``MODEL.DIFFPS.BACKBONE``; ``noise`` takes the place of its NOISE."""
        config = cfg.MODEL.DIFFPS.BACKBONE
        folder = DiffusionFolder(
            config.MODEL, config.REVISION, config.VARIANT, config.LOCAL_FILES_ONLY
        )
        dtype = parse_dtype(config.DTYPE)
        unet, vae = folder.load_unet(dtype, config.FAMILY), folder.load_vae(dtype)
        check_parts(unet, vae, unet.config.cross_attention_dim, config.MODEL)
        return cls(
            folder,
            unet,
            vae,
            noise=noise or config.NOISE,
            vae_sample=config.VAE_SAMPLE,
            upcast=config.UPCAST_ATTENTION,
            device=cfg.MODEL.DEVICE,
        )

    @torch.no_grad()
    def encode(self, image: Tensor) -> ProbedImage:
        """Runs the VAE.

        Args:
            image: (3, H, W) RGB, 0 to 255.
        """
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
        """Cross-attention layers by place (``u3r0``) or name; ``key`` is named in the error."""
        names = [name if "map" in name else f"{name}_map" for name in places]
        return find_layers(names, self.layers, key, ("map",))

    def find_features(self, names: Sequence[str], key: str) -> list[Layer]:
        """All other layers by name; ``key`` is named in the error."""
        return find_layers(names, self.layers, key, ("q", "k", "v", "xq", "vit", "res"))

    def attention(
        self, image: ProbedImage, prompt: str, words: Sequence[str], layers: Sequence[Layer],
        timestep: int = 0,
    ) -> dict[tuple[str, str], Tensor]:  # fmt: skip
        """Where each word of a prompt looks.

        Args:
            words: of the prompt, one token each. layers: of :meth:`find_maps`.

        Returns:
            (word, name of the layer) -> (E, h, w) probabilities, float32, on the CPU.

        Raises:
            ValueError: a word of several tokens, or one that the prompt does not have.
        """
        texts = {word: encode_text(self.folder, prompt, map_word=word) for word in words}
        if not texts:
            return {}
        queries = [self.layers[layer.name.removesuffix("map") + "xq"] for layer in layers]
        features = self._features(next(iter(texts.values())), queries, timestep)
        outputs = features(self._latent(image, timestep), image.size)
        maps = {}
        for layer, query in zip(layers, queries, strict=True):
            cells = outputs[query.name]
            tokens = cells.flatten(2).transpose(1, 2)
            for word, text in texts.items():
                heads = [
                    features.word_map(layer, tokens, [head], text.token)
                    for head in range(layer.heads)
                ]
                maps[word, layer.name] = torch.cat(heads, 1)[0].unflatten(1, cells.shape[2:]).cpu()
        return maps

    def features(
        self, image: ProbedImage, prompt: str, layers: Sequence[Layer], timesteps: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """Activations at several timesteps: for each, name -> (C, h, w) float32 on the CPU."""
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
        """To be used before the next one is made: its text becomes that of the UNet."""
        return UNetFeatures(
            self.unet,
            layers,
            text,
            timestep=timestep,
            latent_stride=self.latent_stride,
            upcast=self.upcast,
        )

    def _latent(self, image: ProbedImage, timestep: int) -> Tensor:
        noiser = LatentNoiser(
            self._alphas_cumprod,
            timestep,
            self.noise,
            self.vae_sample,
            self.vae.config.scaling_factor,
        )
        return noiser(image.moments, [image.key])
