# SPDX-License-Identifier: Apache-2.0
"""What the results of the frozen model depend on, so that no cache serves another model."""

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from diffps.cache import CACHE_KINDS, TensorCache, tensor_digest, weights_digest
from diffps.hooks import Layer
from diffps.latents import LatentNoiser
from diffps.text import TextConditioning

_KEY = "MODEL.DIFFPS.BACKBONE"


def open_cache(
    config: CfgNode,
    vae: nn.Module,
    unet: nn.Module,
    text: TextConditioning,
    noiser: LatentNoiser,
    layers: list[Layer],
) -> dict[str, TensorCache]:
    """Opens the cache that the config asks for.

    Args:
        config: ``MODEL.DIFFPS.BACKBONE``.
        vae, unet: as loaded; a float32 fallback later does not change what entries mean.
        layers: whose activations a feature cache holds; for a compact one their sources.

    Returns:
        The cache by argument name of ``DiffusionBackbone``; empty without one.

    Raises:
        ValueError: an unknown kind, no folder, or features that would differ from call to call.
        OSError: the folder cannot be made; the message names the config key.
    """
    cache = config.CACHE
    if cache.KIND not in CACHE_KINDS:
        raise ValueError(f"{_KEY}.CACHE.KIND is {cache.KIND!r}; allowed: {CACHE_KINDS}")
    if cache.KIND == "none":
        return {}
    if not cache.DIR:
        raise ValueError(f"{_KEY}.CACHE.KIND is {cache.KIND!r}, but CACHE.DIR is empty.")
    identity = {"vae": weights_digest(vae), "dtype": config.DTYPE}
    if cache.KIND != "latent":
        identity |= _features_identity(config, unet, text, noiser, layers)
    try:
        opened = TensorCache(cache.DIR, cache.KIND, identity, int(cache.MAX_GB * 1e9))
    except OSError as e:
        raise type(e)(
            e.errno,
            f"{_KEY}.CACHE.DIR cannot be used, {e.strerror}; give another folder",
            cache.DIR,
        ) from e
    return {"latent_cache" if cache.KIND == "latent" else "feature_cache": opened}


def _features_identity(
    config: CfgNode,
    unet: nn.Module,
    text: TextConditioning,
    noiser: LatentNoiser,
    layers: list[Layer],
) -> dict[str, Any]:
    """What activations depend on beside the image and the VAE."""
    if not noiser.is_repeatable:
        raise ValueError(
            f"{_KEY}.CACHE.KIND {config.CACHE.KIND!r} would freeze one draw of the noise. Set "
            "NOISE to 'seeded', or to 'none' with VAE_SAMPLE False; now NOISE is "
            f"{config.NOISE!r} and VAE_SAMPLE {config.VAE_SAMPLE}."
        )
    return {
        "unet": weights_digest(unet),
        "prompt": config.PROMPT,
        "context": tensor_digest(text.context),
        "token": text.token,
        "layers": [layer.name for layer in layers],
        "heads": list(config.ATTN.HEADS),
        "timestep": config.TIMESTEP,
        "alpha_bar": noiser.alpha_bar,
        "scale": noiser.scale,
        "noise": config.NOISE,
        "vae_sample": config.VAE_SAMPLE,
        "upcast": config.UPCAST_ATTENTION,
    }
