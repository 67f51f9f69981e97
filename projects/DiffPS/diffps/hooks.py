# SPDX-License-Identifier: Apache-2.0
"""Names of the activations of a diffusion UNet, and the hooks that record them.

Shape shorthand: B images, C channels, (H, W) cells, HW their product.

A layer has a short name, used as feature name, and a long one; a config may use either.

    short      long                                    what it is
    u1r2_q     up-level1-repeat2-vit-block0-self-q     output of to_q of the self-attention, before
                                                       it is split into heads; _k, _v likewise
    u1r2_n     up-level1-repeat2-vit-block0-self-norm  the normed hidden state that q, k and v are
                                                       projections of; _xn: that of cross-attention
    u1r2_xq    up-level1-repeat2-vit-block0-cross-q    output of to_q of the cross-attention
    u1r2_map   up-level1-repeat2-vit-block0-cross-map  cross-attention probabilities of one word
    u1r2_vit   up-level1-repeat2-vit-out               output of the whole attention module
    u1r2_res   up-level1-repeat2-res-out               output of the ResNet block

``d``, ``m``, ``u`` are the down, mid and up blocks of diffusers' ``UNet2DConditionModel``, level an
index into them, repeat an index into their ``attentions`` (``resnets`` for ``res``). A transformer
block other than the first is named ``u0r1b3_q``.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_STAGES = {"d": "down", "m": "mid", "u": "up"}
_KINDS = {
    "q": "self-q",
    "k": "self-k",
    "v": "self-v",
    "n": "self-norm",
    "xn": "cross-norm",
    "xq": "cross-q",
    "map": "cross-map",
    "vit": "vit-out",
    "res": "res-out",
}
_WHOLE = ("vit", "res")  # kinds that do not belong to a single transformer block
_SUBMODULES = {
    "n": "norm1",
    "xn": "norm2",
    "q": "attn1.to_q",
    "k": "attn1.to_k",
    "v": "attn1.to_v",
    "xq": "attn2.to_q",
    "map": "attn2.to_q",
}
_SHORT = re.compile(r"([dmu])(\d+)r(\d+)(?:b(\d+))?_(\w+)")
_LONG = re.compile(
    r"(down|mid|up)-level(\d+)-repeat(\d+)-(?:(vit-out|res-out)|vit-block(\d+)-(\w+-\w+))"
)


@dataclass(frozen=True)
class Layer:
    """An activation of one particular UNet.

    Attributes:
        name: Short name.
        kind: ``q``, ``k``, ``v``, ``n``, ``xn``, ``xq``, ``map``, ``vit`` or ``res``.
        module: Path of the module whose output it is; for ``map``, that it is computed from.
        channels: Channels of the activation.
        stride: Pixels of the image per cell.
        heads: Attention heads of the block; 0 for ``vit`` and ``res``.
    """

    name: str
    kind: str
    module: str
    channels: int
    stride: int
    heads: int = 0

    def bytes_of(self, image_size: tuple[int, int], dtype: torch.dtype) -> int:
        """Returns the bytes for one image; maps are float32, everything else is of ``dtype``."""
        cells = (image_size[0] // self.stride) * (image_size[1] // self.stride)
        return self.channels * cells * (torch.float32 if self.kind == "map" else dtype).itemsize


def list_layers(unet: nn.Module, latent_stride: int = 8) -> dict[str, Layer]:
    """Returns every layer of a ``UNet2DConditionModel`` by short name, in order of execution."""
    layers: dict[str, Layer] = {}
    stride = latent_stride
    for level, block in enumerate(unet.down_blocks):
        layers |= _block_layers(block, "d", level, f"down_blocks.{level}", stride)
        stride *= 2 if block.downsamplers else 1
    if unet.mid_block is not None:
        layers |= _block_layers(unet.mid_block, "m", 0, "mid_block", stride)
    for level, block in enumerate(unet.up_blocks):
        layers |= _block_layers(block, "u", level, f"up_blocks.{level}", stride)
        stride //= 2 if block.upsamplers else 1
    return layers


def _block_layers(
    block: nn.Module, stage: str, level: int, path: str, stride: int
) -> Iterable[tuple[str, Layer]]:
    found: list[Layer] = []
    attentions = getattr(block, "attentions", ())
    for repeat, resnet in enumerate(block.resnets):
        base = f"{stage}{level}r{repeat}"
        channels = resnet.conv2.out_channels
        found.append(Layer(f"{base}_res", "res", f"{path}.resnets.{repeat}", channels, stride))
        if repeat >= len(attentions):
            continue
        attention, place = attentions[repeat], f"{path}.attentions.{repeat}"
        for index, transformer in enumerate(attention.transformer_blocks):
            prefix = base + (f"b{index}" if index else "")
            for kind, part in _SUBMODULES.items():
                module = f"{place}.transformer_blocks.{index}.{part}"
                name, width = f"{prefix}_{kind}", _width(kind, transformer.get_submodule(part))
                found.append(Layer(name, kind, module, width, stride, transformer.attn2.heads))
        found.append(Layer(f"{base}_vit", "vit", place, channels, stride))
    return [(layer.name, layer) for layer in found]


def _width(kind: str, module: nn.Module) -> int:
    """Returns the channels of a part of a transformer block; a map is of one word."""
    if kind == "map":
        return 1
    return module.normalized_shape[0] if kind in ("n", "xn") else module.out_features


def short_name(name: str) -> str | None:
    """Returns the short form of a short or long layer name, None if it is neither."""
    if match := _SHORT.fullmatch(name):
        stage, level, repeat, block, kind = match.groups()
        if kind not in _KINDS or (block is not None and kind in _WHOLE):
            return None
    elif match := _LONG.fullmatch(name):
        stage, level, repeat, whole, block, part = match.groups()
        stage = stage[0]
        kind = {long: short for short, long in _KINDS.items()}.get(whole or part)
        if kind is None or (kind in _WHOLE) != (whole is not None):
            return None
    else:
        return None
    infix = f"b{int(block)}" if block and int(block) else ""
    return f"{stage}{int(level)}r{int(repeat)}{infix}_{kind}"


def find_layers(
    names: Sequence[str], available: dict[str, Layer], key: str, kinds: Sequence[str] = ()
) -> list[Layer]:
    """Looks up layers by short or long name.

    Args:
        names: Names of layers.
        available: Layers of the UNet, from :func:`list_layers`.
        key: Config key that the names come from, for messages.
        kinds: Allowed kinds; empty for all.

    Raises:
        ValueError: If the UNet does not have a layer, or a layer is named twice.
    """
    allowed = {n: layer for n, layer in available.items() if not kinds or layer.kind in kinds}
    layers = []
    for name in names:
        short = short_name(name)
        if short not in allowed:
            raise ValueError(
                f"{key} names {name!r}, which this UNet does not have. It has {_listing(allowed)} "
                "(also by their long names, e.g. up-level3-repeat0-vit-block0-self-k for u3r0_k)."
            )
        if allowed[short] in layers:
            raise ValueError(f"{key} names {short} twice: {list(names)}.")
        layers.append(allowed[short])
    return layers


def _listing(names: Iterable[str]) -> str:
    """Lists all names, grouped by place: ``u1r0_(res|q|k|v), u1r1_(...)``."""
    places: dict[str, list[str]] = {}
    for name in names:
        place, _, kind = name.rpartition("_")
        places.setdefault(place, []).append(kind)
    return ", ".join(f"{place}_({'|'.join(kinds)})" for place, kinds in places.items())


class ForwardDone(Exception):
    """Ends the forward pass of a UNet after the last recorded layer. It is not an error."""


@dataclass
class _Recording:
    latent_size: tuple[int, int]
    truncate: bool
    outputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class ActivationTap:
    """Records activations of a UNet while it runs.

    Hooks are objects, not closures, so that a deep copy of UNet and tap records into the copy.

    Attributes:
        layers: Layers to record.
        latent_stride: Pixels of the image per cell of the latent.
        to_map: Turns the cross-attention query (B, HW, C) of a ``map`` layer into (B, 1, HW)
            values; required for taps with such layers.
    """

    layers: list[Layer]
    latent_stride: int
    to_map: Callable[[Layer, Tensor], Tensor] | None = None
    _recording: _Recording | None = None

    def attach(self, unet: nn.Module) -> None:
        """Registers the hooks permanently; outside :meth:`record` they have no effect."""
        for layer in self.layers:
            unet.get_submodule(layer.module).register_forward_hook(_Hook(self, layer))

    @contextmanager
    def record(self, latent_size: tuple[int, int], truncate: bool) -> Iterator[dict[str, Tensor]]:
        """Records one forward pass of the UNet inside the ``with`` block.

        Args:
            latent_size: Height and width of the UNet's input.
            truncate: Whether to end the forward pass, and the block, after the last layer.

        Yields:
            Layer name -> (B, C, H, W), in the dtype of the UNet, in order of execution.
        """
        self._recording = _Recording(latent_size, truncate)
        try:
            yield self._recording.outputs
        except ForwardDone:
            pass
        finally:
            self._recording = None

    def take(self, layer: Layer, output: Tensor) -> None:
        """Stores the output of a layer; called by the hooks."""
        recording = self._recording
        if recording is None:
            return
        if layer.kind == "map":
            if self.to_map is None:
                raise ValueError(f"{layer.name} is an attention map, but to_map is not given")
            output = self.to_map(layer, output)
        elif layer.kind not in _WHOLE:
            output = output.transpose(1, 2)
        if output.ndim == 3:
            scale = layer.stride // self.latent_stride
            height, width = (side // scale for side in recording.latent_size)
            output = output.unflatten(2, (height, width))
        recording.outputs[layer.name] = output.contiguous()
        if recording.truncate and len(recording.outputs) == len(self.layers):
            raise ForwardDone


@dataclass(eq=False)
class _Hook:
    tap: ActivationTap
    layer: Layer

    def __call__(self, module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        self.tap.take(self.layer, output[0] if isinstance(output, tuple) else output)
