# SPDX-License-Identifier: Apache-2.0
"""Frozen Stable Diffusion as a Detectron2 backbone.

Shape shorthand: B images, (H, W) pixels of the batch, (h, w) of one image, C channels.

Each image is processed at its own size, rounded up to ``size_divisibility`` (padded with zeros,
which is gray), and not at that of the batch: its features do not depend on the other images.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from diffps.attention import minmax_normalize, minmax_normalize_inside
from diffps.cache import TensorCache, open_cache
from diffps.compact import HiddenStateProjector
from diffps.hooks import Layer, find_layers, list_layers
from diffps.latents import LatentNoiser, encode_moments, image_digest
from diffps.loading import check_parts, open_folder, parse_dtype
from diffps.text import TextConditioning, get_text
from diffps.unet_forward import UNetFeatures, nonfinite_names
from person_search.modeling.winograd import MIN_CHANNELS, WinogradConv2d, use_winograd

logger = logging.getLogger(__name__)

MAP = "attn"
"""Name of the cross-attention map among the features."""

_KEY = "MODEL.DIFFPS.BACKBONE"
_KINDS = ("q", "k", "v", "xq", "vit", "res")


@BACKBONE_REGISTRY.register()
class DiffusionBackbone(Backbone):
    """Activations of a frozen diffusion UNet, and the attention map of one word.

    VAE and UNet are not registered as submodules, so they are not in any state dict or optimizer
    and do not follow ``train()``; they do follow ``to(device)``. No gradient is computed here.

    Args:
        vae: VAE of the diffusion model.
        unet: Returns ``out_layers`` and ``map_layers``, or the sources of ``projector``.
        noiser: Turns the posterior of the VAE into the latent.
        out_layers: Layers whose activations are the features.
        map_layers: Cross-attention layers whose maps are averaged into the feature ``attn``.
        map_stride: Stride in pixels of ``attn``; maps of other strides are resized.
        latent_cache: Cache of the posteriors of the VAE.
        feature_cache: Cache of the outputs of ``unet``.
        projector: Computes the features from the hidden states of a compact cache.
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
        """Loads the model of ``MODEL.DIFFPS.BACKBONE``."""
        config = cfg.MODEL.DIFFPS.BACKBONE
        mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
        if cfg.INPUT.FORMAT != "RGB" or mean != [127.5] * 3 or std != [127.5] * 3:
            raise ValueError(
                "Stable Diffusion takes RGB in [-1, 1]: INPUT.FORMAT must be 'RGB', "
                "MODEL.PIXEL_MEAN and PIXEL_STD [127.5, 127.5, 127.5]; they are "
                f"{cfg.INPUT.FORMAT!r}, {mean} and {std}."
            )
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
        """Device of the model."""
        return self._word_vectors.device

    @property
    def size_divisibility(self) -> int:
        """64 for Stable Diffusion 1 and 2, 32 for the SDXL shape."""
        return self._divisibility

    @property
    def text_dim(self) -> int:
        """Length of text vectors."""
        return self._unet.text.context.shape[2]

    def word_vectors(self, words: Sequence[str]) -> Tensor:
        """Returns text vectors of words that were encoded when the backbone was built.

        Returns:
            (n, ``text_dim``) float32, on the device of the backbone.
        """
        unknown = [word for word in words if word not in self._words]
        if unknown:
            raise ValueError(
                f"there are no text vectors of {unknown}: only {self._words} were encoded when the "
                f"backbone was built. Add words to {_KEY}.WORDS or SFAN.PARTS."
            )
        return self._word_vectors[[self._words.index(word) for word in words]]

    def share_frozen(self, other: "DiffusionBackbone") -> None:
        """Uses the frozen weights of ``other``, of which this is a copy; called by ``SOLVER.EMA``.

        Both must stay on one device from then on.
        """
        self._frozen, self._unet, self._projector = other._frozen, other._unet, other._projector
        self.latent_cache, self.feature_cache = other.latent_cache, other.feature_cache

    def _apply(self, fn, recurse: bool = True) -> "DiffusionBackbone":
        """Also moves the frozen weights."""
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
        """Runs VAE and UNet, or reads their outputs from the cache.

        Args:
            images: (B, 3, H, W) RGB in [-1, 1], zero-padded at the right and at the bottom.
            image_sizes: (h, w) of each image without padding. Default: (H, W).
            keys: Digest of each image for caches and seeded noise
                (:func:`diffps.latents.image_digest`). Default: computed where needed.

        Returns:
            Name -> (B, C, ceil(H / stride), ceil(W / stride)), after rounding H and W up to
            ``size_divisibility``; zero outside the images. ``attn`` is float32, stretched to
            [0, 1] per image, zeros if constant. Everything else is float32, or under autocast of
            the UNet's dtype.
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
    def compute(self, image: Tensor, size: Tensor) -> dict[str, Tensor]:
        """Runs VAE and UNet by operations on tensors alone, for ``torch.export``.

        Args:
            image: (1, 3, H, W), see :meth:`forward`; sides are multiples of
                ``size_divisibility``.
            size: (h, w) without padding, (2,).

        Returns:
            See :meth:`forward`.
        """
        latents = self._noiser(encode_moments(self._frozen[0], image), [""])
        # a tracer does not survive the exception that would end the forward pass of the UNet
        outputs = self._unet.run(latents, image.shape[2:], truncate=False)
        features = {layer.name: outputs[layer.name].float() for layer in self.out_layers}
        if self.map_layers:
            maps = {layer.name: outputs[layer.name][0] for layer in self.map_layers}
            attn = self._average_maps(maps, image.device)[None]
            rows, columns = (torch.arange(n) for n in attn.shape[2:])
            cells = (size / self.map_stride).ceil()
            inside = (rows < cells[0])[:, None] & (columns < cells[1])
            features[MAP] = minmax_normalize_inside(attn, inside.expand_as(attn))
        return features

    def check_exportable(self) -> list[nn.Module]:
        """Returns VAE and UNet if :meth:`compute` can be exported.

        Raises:
            ValueError: If a setting cannot be exported.
        """
        for key, value, allowed in (
            ("NOISE", self._noiser.noise, "none"),
            ("VAE_SAMPLE", self._noiser.vae_sample, False),
            ("DTYPE", str(self._unet.dtype).removeprefix("torch."), "float32"),
            ("WINOGRAD", self._uses_winograd(), False),
            ("CACHE.KIND", "none" if self._projector is None else "compact", "none"),
        ):
            if value != allowed:
                raise ValueError(
                    f"{_KEY}.{key} is {value}; the frozen model can only be exported with "
                    f"{allowed}. The heads alone are exported with --heads-only."
                )
        return self._frozen

    @torch.no_grad()
    def fill_cache(
        self, images: Tensor, image_sizes: Sequence[tuple[int, int]], keys: Sequence[str]
    ) -> None:
        """Adds missing entries to the cache, computing nothing else; see :meth:`forward`."""
        for size, indices, crops in self._group(images, self._check_images(images, image_sizes)):
            some_keys = [keys[i] for i in indices]
            if self.feature_cache is not None:
                self._run_group(crops, size, some_keys)
            else:
                self._moments(torch.stack([_pad(crop, size) for crop in crops]), some_keys)

    def cache_entry_bytes(self, image_size: tuple[int, int]) -> int:
        """Returns the bytes of the cached tensors of an image of (h, w) pixels."""
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
        """Yields each rounded size, the indices of its images, and the images without padding."""
        groups = defaultdict(list)
        for index, (h, w) in enumerate(sizes):
            groups[self._round_up(h), self._round_up(w)].append(index)
        for size, indices in groups.items():
            yield size, indices, [images[i, :, : sizes[i][0], : sizes[i][1]] for i in indices]

    def _run_group(
        self, crops: list[Tensor], size: tuple[int, int], given_keys: Sequence[str | None]
    ) -> list[dict[str, Tensor]]:
        """Computes raw features of images of one rounded size, using the feature cache."""
        needs_keys = self.cache is not None or self._noiser.noise == "seeded"
        keys = [
            key or (image_digest(crop) if needs_keys else "")
            for key, crop in zip(given_keys, crops, strict=True)
        ]

        def compute(indices: list[int]) -> list[dict[str, Tensor]]:
            images = torch.stack([_pad(crops[i], size) for i in indices])
            some_keys = [keys[i] for i in indices]
            outputs = self._unet(self._noiser(self._moments(images, some_keys), some_keys), size)
            return [{name: x[i] for name, x in outputs.items()} for i in range(len(indices))]

        return _through_cache(self.feature_cache, keys, compute)

    def _moments(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns the posterior of the VAE, (B, 2 L, h, w), using the latent cache."""

        def compute(indices: list[int]) -> list[dict[str, Tensor]]:
            return [{"moments": x} for x in self._encode(images[indices])]

        results = _through_cache(self.latent_cache, keys, compute)
        return torch.stack([x["moments"].to(images.device) for x in results])

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
        """Collates the features of the images to a batch of maps."""
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
        """Returns the mean of the raw maps of one image at ``map_stride``, (1, h', w')."""
        maps = []
        for layer in self.map_layers:
            raw = result[layer.name].to(device).float()
            if layer.stride != self.map_stride:
                cells = [side * layer.stride // self.map_stride for side in raw.shape[1:]]
                raw = F.interpolate(raw[None], cells, mode="bilinear", align_corners=False)[0]
            maps.append(raw)
        return sum(maps[1:], maps[0]) / len(maps)

    # ---- helpers ------------------------------------------------------------------------------
    def _uses_winograd(self) -> bool:
        return any(isinstance(m, WinogradConv2d) for part in self._frozen for m in part.modules())

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


def _through_cache(
    cache: TensorCache | None,
    keys: Sequence[str],
    compute: Callable[[list[int]], list[dict[str, Tensor]]],
) -> list[dict[str, Tensor]]:
    """Returns the entry of each key; missing ones are computed, by their indices, and added."""
    if cache is None:
        return compute(list(range(len(keys))))
    results = {i: found for i, found in enumerate(cache.get_many(keys)) if found is not None}
    missing = [i for i in range(len(keys)) if i not in results]
    if missing:
        for i, result in zip(missing, compute(missing), strict=True):
            cache.put(keys[i], result)
            results[i] = result
    return [results[i] for i in range(len(keys))]


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]))


def _stack(maps: list[Tensor], size: tuple[int, int], stride: int) -> Tensor:
    """Stacks (C, h', w') maps after zero-padding them to the cells of ``size`` pixels."""
    cells = size[0] // stride, size[1] // stride
    return torch.stack([x if x.shape[1:] == cells else _pad(x, cells) for x in maps])


def assemble(
    cfg: CfgNode,
    vae: nn.Module,
    unet: nn.Module,
    text: TextConditioning,
    alphas_cumprod: Tensor,
) -> dict[str, Any]:
    """Returns the arguments of :class:`DiffusionBackbone` for the loaded parts of a model.

    Args:
        cfg: The whole config.
        vae: Frozen VAE in the type of ``BACKBONE.DTYPE``; changed in place.
        unet: Frozen UNet in the type of ``BACKBONE.DTYPE``; changed in place.
        text: Condition of the UNet.
        alphas_cumprod: Share of signal power at every timestep.

    Raises:
        ValueError: If the model does not support a setting, or settings contradict each other.
    """
    config = cfg.MODEL.DIFFPS.BACKBONE
    latent_stride = 2 ** (len(vae.config.block_out_channels) - 1)
    available = list_layers(unet, latent_stride)
    out_layers = find_layers(config.OUT_FEATURES, available, f"{_KEY}.OUT_FEATURES", _KINDS)
    maps = [name if "map" in name else f"{name}_map" for name in config.ATTN.LAYERS]
    map_layers = find_layers(maps, available, f"{_KEY}.ATTN.LAYERS", ("map",))
    layers, projector = [*out_layers, *map_layers], None
    if not layers:
        raise ValueError(f"{_KEY}.OUT_FEATURES and ATTN.LAYERS are both empty.")
    if config.CACHE.KIND == "compact":
        projector = HiddenStateProjector(unet, layers, available)
        layers = projector.source_layers
    scale = vae.config.scaling_factor
    noiser = LatentNoiser(alphas_cumprod, config.TIMESTEP, config.NOISE, config.VAE_SAMPLE, scale)
    caches = open_cache(config, vae, unet, text, noiser, layers)
    # after the cache has computed digests of the weights
    if cfg.MODEL.DEVICE == "cpu":
        for model in (vae, unet):
            if config.WINOGRAD:
                use_winograd(model, MIN_CHANNELS)
            if config.DTYPE == "bfloat16":  # oneDNN would convert the maps of every convolution
                model.to(memory_format=torch.channels_last)
    features = UNetFeatures(
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
    return {
        "vae": vae,
        "unet": features,
        "noiser": noiser,
        "out_layers": out_layers,
        "map_layers": map_layers,
        "map_stride": config.ATTN.STRIDE,
        "projector": projector,
        **caches,
    }
