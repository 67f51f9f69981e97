# SPDX-License-Identifier: Apache-2.0
"""Sheets of the frozen model: cross-attention of words, and activations as colors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from diffps.hooks import Layer
from diffps.vis.maps import (
    overlay,
    place_map,
    rgb_image,
    unit_range,
    valid_cells,
    value_range,
)
from diffps.vis.pca import pca_colors, side_by_side
from diffps.vis.probe import DiffusionProbe, ProbedImage
from diffps.vis.sheet import Panel, Row, draw_sheet
from diffps.vis.subject import Subject

SCALES = ("map", "shared")
FITS = ("level", "cell")


@dataclass(frozen=True)
class AttentionOptions:
    """Options of the attention sheet.

    Attributes:
        words: Words, one column each.
        prompt: Prompt with the words; empty if each word is a prompt of its own.
        places: Layers such as ``u3r0``.
        heads: Indices of heads; empty for all.
        average: Whether a layer has one row for the average of its heads, or one row per head.
        scale: ``map`` for one color scale per map, ``shared`` for the same scale in all maps.
        timestep: Timestep given to the UNet.
    """

    words: Sequence[str]
    prompt: str = ""
    places: Sequence[str] = ("u3r0",)
    heads: Sequence[int] = ()
    average: bool = True
    scale: str = "map"
    timestep: int = 0

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"the scale of attention is {self.scale!r}; allowed: {SCALES}")
        if not self.words or not self.places:
            raise ValueError("attention needs at least one word and one layer.")


def draw_attention(
    probe: DiffusionProbe,
    image: ProbedImage,
    subject: Subject,
    options: AttentionOptions,
    panel_size: tuple[int, int],
) -> Image.Image:
    """Draws one column per word and one row per layer and head, after the image itself."""
    layers = probe.find_maps(options.places, "--layers")
    maps: dict[tuple[str, str], Tensor] = {}  # (word, layer) -> (heads, h, w)
    passes = (
        [(options.prompt, options.words)]
        if options.prompt
        else [(word, [word]) for word in options.words]
    )
    for prompt, words in passes:
        maps |= probe.attention(image, prompt, words, layers, options.timestep)
    rows = []
    for layer in layers:
        for heads, label in _head_rows(layer, options):
            chosen = [maps[word, layer.name][heads].mean(dim=0) for word in options.words]
            chosen = [valid_cells(x, layer.stride, subject.input_size) for x in chosen]
            rows.append((layer, label, chosen))
    everything = value_range([x for _, _, chosen in rows for x in chosen])
    scene = subject.scaled(*panel_size)
    drawn = []
    for layer, label, chosen in rows:
        panels = [Panel(scene, subject.name)]
        for word, x in zip(options.words, chosen, strict=True):
            limits = everything if options.scale == "shared" else value_range([x])
            placed = place_map(unit_range(x, limits), layer.stride, subject.input_size, scene.size)
            panels.append(Panel(overlay(scene, placed), f"“{word}”", limits=limits))
        cells = " × ".join(map(str, chosen[0].shape))
        drawn.append(Row(panels, f"{layer.name.removesuffix('_map')}\n{label}\n{cells} cells"))
    return draw_sheet(
        drawn,
        panel_size,
        title="Cross-attention of each word",
        caption=_attention_caption(options),
    )


def _head_rows(layer: Layer, options: AttentionOptions) -> list[tuple[list[int], str]]:
    """Returns the heads that are averaged in each row of a layer, and the label of the row."""
    wrong = [head for head in options.heads if not 0 <= head < layer.heads]
    if wrong:
        raise ValueError(
            f"--heads has {wrong}, but {layer.name.removesuffix('_map')} has heads 0 to "
            f"{layer.heads - 1}."
        )
    heads = list(options.heads) or list(range(layer.heads))
    if not options.average:
        return [([head], f"head {head}") for head in heads]
    if len(heads) == layer.heads:
        return [(heads, f"mean of {layer.heads} heads")]
    names = ", ".join(map(str, heads))
    return [(heads, f"head {names}" if len(heads) == 1 else f"mean of heads {names}")]


def _attention_caption(options: AttentionOptions) -> str:
    source = (
        f"Words of the prompt “{options.prompt}”"
        if options.prompt
        else "Each word is a prompt of its own"
    )
    scale = (
        "Every map has its own scale, from its lowest to its highest probability."
        if options.scale == "map"
        else "All maps share one scale of probability."
    )
    return f"{source}; timestep {options.timestep}. {scale}"


def draw_pca(
    probe: DiffusionProbe,
    image: ProbedImage,
    subject: Subject,
    groups: Mapping[str, Sequence[str]],
    prompt: str,
    timesteps: Sequence[int],
    fit: str,
    panel_size: tuple[int, int],
) -> Image.Image:
    """Draws one row per group of activations and one column per timestep.

    Args:
        probe: Diffusion model.
        image: Encoded image.
        subject: Image to draw.
        groups: Title -> names of activations of one size, which are concatenated.
        prompt: Condition of the UNet.
        timesteps: Timesteps given to the UNet.
        fit: ``level`` for one PCA per row, so that colors are comparable within it; ``cell`` for
            one per panel.
        panel_size: (width, height) of a panel.
    """
    if fit not in FITS:
        raise ValueError(f"the fit of the PCA is {fit!r}; allowed: {FITS}")
    found = {title: probe.find_features(names, "--features") for title, names in groups.items()}
    layers = list({layer.name: layer for some in found.values() for layer in some}.values())
    outputs = probe.features(image, prompt, layers, timesteps)
    scene = subject.scaled(*panel_size)
    rows = []
    for title, some in found.items():
        stride, names = some[0].stride, [layer.name for layer in some]
        moments = [
            [valid_cells(output[name], stride, subject.input_size) for name in names]
            for output in outputs
        ]
        maps = side_by_side(moments)
        colors, shares = pca_colors(maps, together=fit == "level")
        panels = [Panel(scene, subject.name)]
        for index, (timestep, x) in enumerate(zip(timesteps, colors, strict=True)):
            placed = place_map(x, stride, subject.input_size, scene.size, smooth=False)
            share = f"{100 * float(shares[min(index, len(shares) - 1)].sum()):.0f} % of variance"
            note = share if fit == "cell" or index == 0 else ""
            panels.append(Panel(rgb_image(placed), f"timestep {timestep}", note))
        cells = " × ".join(map(str, maps[0].shape[1:]))
        rows.append(Row(panels, f"{title}\n{', '.join(names)}\n{cells} cells"))
    fitted = (
        "of all timesteps of a row together: equal colors in a row mean equal features"
        if fit == "level"
        else "of each panel alone: colors are not comparable between panels"
    )
    noise = (
        "no noise added" if probe.noise == "none" else f"{probe.noise} noise of each timestep added"
    )
    return draw_sheet(
        rows,
        panel_size,
        title="Activations: PCA to red, green, blue",
        caption=f"The first three principal components {fitted}. Prompt “{prompt}”, {noise}.",
    )


def group_by_level(names: Sequence[str]) -> dict[str, list[str]]:
    """Groups activations by level of the UNet, in the given order."""
    groups: dict[str, list[str]] = {}
    stages = {"d": "down", "m": "mid", "u": "up"}
    for name in names:
        groups.setdefault(f"{stages[name[0]]}-level {name[1]}", []).append(name)
    return groups
