# SPDX-License-Identifier: Apache-2.0
"""Puts the loaded parts of a diffusion model together as the config says."""

from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from diffps.cache_identity import open_cache
from diffps.compact import HiddenStateProjector
from diffps.hooks import Layer, find_layers, list_layers
from diffps.latents import LatentNoiser
from diffps.text import TextConditioning
from diffps.unet_forward import UNetFeatures
from diffps.winograd import MIN_CHANNELS, use_winograd

_KEY = "MODEL.DIFFPS.BACKBONE"
_KINDS = ("q", "k", "v", "xq", "vit", "res")


def assemble(
    cfg: CfgNode,
    vae: nn.Module,
    unet: nn.Module,
    text: TextConditioning,
    alphas_cumprod: Tensor,
) -> dict[str, Any]:
    """Makes the arguments of ``DiffusionBackbone``.

    Args:
        vae, unet: frozen, in the type of ``BACKBONE.DTYPE``. Both are changed in place.
        alphas_cumprod: share of signal power at every timestep.

    Raises:
        ValueError: a setting that this model does not have, or that contradicts another.
    """
    config = cfg.MODEL.DIFFPS.BACKBONE
    latent_stride = 2 ** (len(vae.config.block_out_channels) - 1)
    available = list_layers(unet, latent_stride)
    out_layers, map_layers = _wanted_layers(config, available)
    layers, projector = [*out_layers, *map_layers], None
    if config.CACHE.KIND == "compact":
        projector = HiddenStateProjector(unet, layers, available)
        layers = projector.source_layers
    noiser = LatentNoiser(
        alphas_cumprod,
        config.TIMESTEP,
        config.NOISE,
        config.VAE_SAMPLE,
        vae.config.scaling_factor,
    )
    caches = open_cache(config, vae, unet, text, noiser, layers)
    # after the cache has taken digests of the weights
    if config.WINOGRAD and cfg.MODEL.DEVICE == "cpu":
        for model in (vae, unet):
            use_winograd(model, MIN_CHANNELS)
    return {
        "vae": vae,
        "unet": _make_features(config, unet, layers, text, latent_stride),
        "noiser": noiser,
        "out_layers": out_layers,
        "map_layers": map_layers,
        "map_stride": config.ATTN.STRIDE,
        "projector": projector,
        **caches,
    }


def _make_features(
    config: CfgNode,
    unet: nn.Module,
    layers: list[Layer],
    text: TextConditioning,
    latent_stride: int,
) -> UNetFeatures:
    """The UNet that gives the outputs of ``layers``."""
    return UNetFeatures(
        unet,
        layers,
        text,
        timestep=config.TIMESTEP,
        latent_stride=latent_stride,
        map_heads=config.ATTN.HEADS,
        truncate=config.TRUNCATE,
        upcast=config.UPCAST_ATTENTION,
        on_nonfinite=config.NONFINITE,
        compile_blocks=config.COMPILE,
    )


def _wanted_layers(config: CfgNode, available: dict[str, Layer]) -> tuple[list[Layer], list[Layer]]:
    """The layers of ``OUT_FEATURES`` and of ``ATTN.LAYERS``."""
    out_layers = find_layers(config.OUT_FEATURES, available, f"{_KEY}.OUT_FEATURES", _KINDS)
    maps = [name if "map" in name else f"{name}_map" for name in config.ATTN.LAYERS]
    map_layers = find_layers(maps, available, f"{_KEY}.ATTN.LAYERS", ("map",))
    if not out_layers and not map_layers:
        raise ValueError(f"{_KEY}.OUT_FEATURES and ATTN.LAYERS are both empty.")
    return out_layers, map_layers
