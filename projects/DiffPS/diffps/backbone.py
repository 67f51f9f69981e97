# SPDX-License-Identifier: Apache-2.0
"""Frozen Stable Diffusion as a Detectron2 backbone.

Shape shorthand: B images, (H, W) pixels of the batch, (h, w) of one image, C channels.

Each image is run at its own size, rounded up to ``size_divisibility`` (padded with zeros, which is
gray), and not at that of the batch: what comes out does not depend on the other images.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from diffps.assembly import assemble
from diffps.attention import minmax_normalize
from diffps.cache import TensorCache
from diffps.compact import HiddenStateProjector
from diffps.hooks import Layer, list_layers
from diffps.latents import LatentNoiser, encode_moments, image_digest
from diffps.loading import check_parts, open_folder, parse_dtype
from diffps.text_file import get_text
from diffps.unet_forward import UNetFeatures, nonfinite_names

logger = logging.getLogger(__name__)

MAP = "attn"
"""Name of the cross-attention map among the features."""

_KEY = "MODEL.DIFFPS.BACKBONE"


@BACKBONE_REGISTRY.register()
class DiffusionBackbone(Backbone):
    """Activations of a frozen diffusion UNet, and the attention map of one word.

    Frozen in fact: VAE and UNet are no sub-modules, so they are in no state dict, optimizer or
    ``train()``; they still follow ``to(device)``. Nothing here has a gradient.
    """

    @configurable
    def __init__(
        self,
        *,
        vae: nn.Module,
        unet: UNetFeatures,
        noiser: LatentNoiser,
        out_layers: Sequence[Layer],
        map_layers: Sequence[Layer] = (),
        map_stride: int = 8,
        latent_cache: TensorCache | None = None,
        feature_cache: TensorCache | None = None,
        projector: HiddenStateProjector | None = None,
    ) -> None:
        """
        Args:
            unet: gives ``out_layers`` and ``map_layers``, or what ``projector`` makes them from.
            map_layers: averaged, after resizing to ``map_stride``, into the feature ``attn``.
            latent_cache, feature_cache: used where given; the latter holds what ``unet`` gives.
        """
        super().__init__()
        # in a list, so that torch does not register them
        self._frozen = [vae, unet.unet]
        self._unet, self._noiser, self._projector = unet, noiser, projector
        self.out_layers, self.map_layers = list(out_layers), list(map_layers)
        self.map_stride = map_stride
        self.latent_cache, self.feature_cache = latent_cache, feature_cache
        self._out_features = [layer.name for layer in out_layers]
        self._out_feature_channels = {layer.name: layer.channels for layer in out_layers}
        self._out_feature_strides = {layer.name: layer.stride for layer in out_layers}
        if map_layers:
            self._out_features.append(MAP)
            self._out_feature_channels[MAP] = 1
            self._out_feature_strides[MAP] = map_stride
        self._divisibility = max(layer.stride for layer in list_layers(unet.unet).values())
        words = unet.text.word_vectors
        self._words = list(words)
        vectors = torch.stack(list(words.values())) if words else unet.text.context.new_zeros(0, 0)
        self.register_buffer("_word_vectors", vectors, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        config = cfg.MODEL.DIFFPS.BACKBONE
        _check_input(cfg, input_shape)
        folder = open_folder(config)
        dtype = parse_dtype(config.DTYPE)
        unet = folder.load_unet(dtype, config.FAMILY)
        text = get_text(cfg, folder, unet)
        vae = folder.load_vae(dtype)
        check_parts(unet, vae, text.context.shape[2], config.MODEL)
        return assemble(cfg, vae, unet, text, folder.load_alphas_cumprod())

    @property
    def cache(self) -> TensorCache | None:
        """The cache in use, if any."""
        return self.feature_cache if self.latent_cache is None else self.latent_cache

    @property
    def device(self) -> torch.device:
        return self._word_vectors.device

    # ---- what the parts behind need to know ---------------------------------------------------
    @property
    def size_divisibility(self) -> int:
        """64 for Stable Diffusion 1 and 2, 32 for the SDXL shape."""
        return self._divisibility

    @property
    def text_dim(self) -> int:
        """Length of text vectors."""
        return self._unet.text.context.shape[2]

    def word_vectors(self, words: Sequence[str]) -> Tensor:
        """Text vectors of words that were encoded at build.

        Returns:
            (n, ``text_dim``) float32, on the device of the backbone.
        """
        unknown = [word for word in words if word not in self._words]
        if unknown:
            raise ValueError(
                f"no text vectors of {unknown}: only {self._words} were encoded before the text "
                "encoder was let go. Add words to MODEL.DIFFPS.BACKBONE.WORDS or SFAN.PARTS."
            )
        return self._word_vectors[[self._words.index(word) for word in words]]

    def share_frozen(self, other: "DiffusionBackbone") -> None:
        """Lets this copy of ``other`` hold the same frozen weights instead of a copy of them.

        From then on both must stay on one device. ``SOLVER.EMA`` calls it.
        """
        self._frozen, self._unet, self._projector = other._frozen, other._unet, other._projector
        self.latent_cache, self.feature_cache = other.latent_cache, other.feature_cache

    def _apply(self, fn, recurse: bool = True) -> "DiffusionBackbone":
        """Takes the frozen weights along when the model is moved."""
        for module in self._frozen:
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    # ---- forward ------------------------------------------------------------------------------
    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> dict[str, Tensor]:
        """Runs VAE and UNet, or reads what they gave before.

        Args:
            images: (B, 3, H, W) RGB in [-1, 1], zero-padded at the right and at the bottom.
            image_sizes: B times (h, w) without padding; None: all of (H, W).
            keys: B digests of the images for caches and seeded noise
                (:func:`diffps.latents.image_digest`); None: computed where needed.

        Returns:
            Name -> (B, C, ceil(H / stride), ceil(W / stride)), H and W rounded up to
            ``size_divisibility`` first, zero where an image has no cells. ``attn`` is float32 in
            [0, 1], stretched per image to that range, zeros if constant. All else is float32, or
            under autocast as the UNet gave it.
        """
        sizes = self._check_images(images, image_sizes)
        results: list[dict[str, Tensor]] = [{} for _ in sizes]
        with torch.autocast(images.device.type, enabled=False):
            for size, indices, crops in self._group(images, sizes):
                some_keys = [keys[i] if keys else None for i in indices]
                for i, result in zip(indices, self._run_group(crops, size, some_keys), strict=True):
                    results[i] = result
        if self._projector is not None:
            results = [self._projector(result, images.device) for result in results]
        height, width = images.shape[2:]
        padded = self._round_up(height), self._round_up(width)
        return self._collate(results, sizes, padded, images.device)

    @torch.no_grad()
    def fill_cache(
        self, images: Tensor, image_sizes: Sequence[tuple[int, int]], keys: Sequence[str]
    ) -> None:
        """Puts into the cache what it lacks of these images, and computes nothing else.

        Args:
            images, image_sizes, keys: see :meth:`forward`.
        """
        for size, indices, crops in self._group(images, self._check_images(images, image_sizes)):
            some_keys = [keys[i] for i in indices]
            if self.feature_cache is not None:
                self._run_group(crops, size, some_keys)
            else:
                self._moments(torch.stack([_pad(crop, size) for crop in crops]), some_keys)

    def cache_entry_bytes(self, image_size: tuple[int, int]) -> int:
        """Bytes of the tensors that the cache keeps of an image of (h, w) pixels."""
        height, width = map(self._round_up, image_size)
        if self.feature_cache is None:
            vae = self._frozen[0]
            stride = 2 ** (len(vae.config.block_out_channels) - 1)
            values = 2 * vae.config.latent_channels * (height // stride) * (width // stride)
            return values * next(vae.parameters()).dtype.itemsize
        dtype = torch.float32 if self._unet.upcast else self._unet.dtype
        return sum(layer.bytes_of((height, width), dtype) for layer in self._unet.tap.layers)

    def _group(
        self, images: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], list[int], list[Tensor]]]:
        """Gives each rounded size, the indices of its images, and these without padding."""
        groups = defaultdict(list)
        for index, (h, w) in enumerate(sizes):
            groups[self._round_up(h), self._round_up(w)].append(index)
        for size, indices in groups.items():
            yield size, indices, [images[i, :, : sizes[i][0], : sizes[i][1]] for i in indices]

    def _run_group(
        self, crops: list[Tensor], size: tuple[int, int], given_keys: Sequence[str | None]
    ) -> list[dict[str, Tensor]]:
        """Raw features of images of one rounded size, with the feature cache."""
        keys = [
            key or (image_digest(crop) if self._needs_keys else "")
            for key, crop in zip(given_keys, crops, strict=True)
        ]
        if self.feature_cache is None:
            return self._compute(crops, size, keys)
        found = enumerate(self.feature_cache.get_many(keys))
        results = {i: result for i, result in found if result is not None}
        missing = [i for i in range(len(keys)) if i not in results]
        if missing:
            computed = self._compute([crops[i] for i in missing], size, [keys[i] for i in missing])
            for i, result in zip(missing, computed, strict=True):
                self.feature_cache.put(keys[i], result)
                results[i] = result
        return [results[i] for i in range(len(keys))]

    def _compute(
        self, crops: list[Tensor], size: tuple[int, int], keys: Sequence[str]
    ) -> list[dict[str, Tensor]]:
        images = torch.stack([_pad(crop, size) for crop in crops])
        latents = self._noiser(self._moments(images, keys), keys)
        outputs = self._unet(latents, size)
        return [{name: x[i] for name, x in outputs.items()} for i in range(len(crops))]

    def _moments(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """(B, 2 L, h, w) posterior of the VAE, with the latent cache."""
        if self.latent_cache is None:
            return self._encode(images)
        found = enumerate(self.latent_cache.get_many(keys))
        results = {i: x["moments"].to(images.device) for i, x in found if x is not None}
        missing = [i for i in range(len(keys)) if i not in results]
        if missing:
            for i, moments in zip(missing, self._encode(images[missing]), strict=True):
                self.latent_cache.put(keys[i], {"moments": moments})
                results[i] = moments
        return torch.stack([results[i] for i in range(len(keys))])

    def _encode(self, images: Tensor) -> Tensor:
        vae = self._frozen[0]
        moments = encode_moments(vae, images)
        if not nonfinite_names({"": moments}):
            return moments
        if not images.isfinite().all():
            raise FloatingPointError("the images given to the backbone hold infinities or NaN.")
        dtype = next(vae.parameters()).dtype
        if dtype != torch.float16 or self._unet.on_nonfinite == "raise":
            raise FloatingPointError(
                f"infinities or NaN in the VAE with {_KEY}.DTYPE "
                f"{str(dtype).removeprefix('torch.')}; set it to 'bfloat16' or 'float32'."
            )
        logger.warning("float16 overflowed in the VAE; it is computed in float32 from now on.")
        vae.float()
        return self._encode(images)

    def _collate(
        self,
        results: list[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]],
        size: tuple[int, int],
        device: torch.device,
    ) -> dict[str, Tensor]:
        """Puts the images' features into one batch of maps."""
        keep_dtype = torch.is_autocast_enabled(device.type)
        features = {}
        for layer in self.out_layers:
            maps = [r[layer.name].to(device, None if keep_dtype else torch.float32)
                    for r in results]  # fmt: skip
            features[layer.name] = _stack(maps, size, layer.stride)
        if self.map_layers:
            attn = _stack([self._average_maps(r, device) for r in results], size, self.map_stride)
            cells = [(-(-h // self.map_stride), -(-w // self.map_stride)) for h, w in image_sizes]
            features[MAP] = minmax_normalize(attn, cells)
        return features

    def _average_maps(self, result: dict[str, Tensor], device: torch.device) -> Tensor:
        """(1, h', w') mean of the raw maps of one image, at ``map_stride``."""
        maps = []
        for layer in self.map_layers:
            raw = result[layer.name].to(device).float()
            if layer.stride != self.map_stride:
                cells = [side * layer.stride // self.map_stride for side in raw.shape[1:]]
                raw = F.interpolate(raw[None], cells, mode="bilinear", align_corners=False)[0]
            maps.append(raw)
        return sum(maps[1:], maps[0]) / len(maps)

    # ---- helpers ------------------------------------------------------------------------------
    @property
    def _needs_keys(self) -> bool:
        return self.cache is not None or self._noiser.noise == "seeded"

    def _round_up(self, side: int) -> int:
        return -(-side // self._divisibility) * self._divisibility

    def _check_images(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None
    ) -> list[tuple[int, int]]:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(
                f"the backbone takes images of shape (B, 3, H, W), got {tuple(images.shape)}."
            )
        height, width = images.shape[2:]
        limit = (height, width)
        if sizes is None:
            sizes = [limit] * len(images)
        sizes = [(int(h), int(w)) for h, w in sizes]
        if len(sizes) != len(images) or any(not (0 < h <= limit[0] and 0 < w <= limit[1])
                                            for h, w in sizes):  # fmt: skip
            raise ValueError(
                f"image_sizes {sizes} do not fit {len(images)} images of at most {limit}."
            )
        return sizes


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]))


def _stack(maps: list[Tensor], size: tuple[int, int], stride: int) -> Tensor:
    """Stacks (C, h', w') maps after zero-padding them to the cells of ``size`` pixels."""
    cells = size[0] // stride, size[1] // stride
    return torch.stack([x if x.shape[1:] == cells else _pad(x, cells) for x in maps])


def _check_input(cfg: CfgNode, input_shape: ShapeSpec) -> None:
    """Stable Diffusion knows RGB in [-1, 1] only."""
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    if cfg.INPUT.FORMAT != "RGB" or mean != [127.5] * 3 or std != [127.5] * 3:
        raise ValueError(
            "Stable Diffusion takes RGB in [-1, 1]: INPUT.FORMAT must be 'RGB', MODEL.PIXEL_MEAN "
            f"and PIXEL_STD [127.5, 127.5, 127.5]; they are {cfg.INPUT.FORMAT!r}, {mean} and {std}."
        )
