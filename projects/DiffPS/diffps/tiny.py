# SPDX-License-Identifier: Apache-2.0
"""A Stable Diffusion model with a few hundred thousand weights, in the folder format of diffusers.

Classes, topology and files are those of the real models; widths, depths and vocabulary are small
and the weights random. Tests, quick configs and CPU demos thus run the code that loads and uses the
real models, without a download. ``projects/DiffPS/tools/make_tiny_diffusion.py`` is the command.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from diffps.loading import no_progress_bars

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

FAMILIES = ("sd15", "sd21", "sdxl")
RANDOM_PARTS = ("unet", "vae", "text_encoder")
WORDS = (
    *("person", "head", "shirts", "pants", "shoes"),
    *("a", "of", "in", "with", "and", "the", "on", "at", "no", "two", "three", "photo", "street"),
    *("people", "hair", "face", "hat", "shirt", "top", "trousers", "skirt", "shoe", "bag", "dress"),
    *("jacket", "coat", "backpack", "man", "woman", "black", "white", "gray", "red", "orange"),
    *("yellow", "green", "blue", "purple", "pink", "brown", "dark", "light", "striped", "plain"),
)
"""Single-token words. Anything else is spelled, byte by byte if necessary."""

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


@dataclass(frozen=True)
class TinySizes:
    """Sizes of the model. The defaults give 0.8 million weights.

    Attributes:
        unet_channels: Channels per resolution; ``sdxl`` uses the first three.
        unet_heads: Attention heads per resolution.
        unet_layers: Layers of a block.
        vae_channels: Channels of the VAE per resolution.
        text_width: Width of the text encoder.
        text_layers: Layers of the text encoder.
        text_heads: Attention heads of the text encoder.
        norm_groups: Groups of the group norms.
        max_tokens: Length of the token sequence.
        words: Words that are single tokens.
    """

    unet_channels: tuple[int, ...] = (16, 24, 32, 32)
    unet_heads: tuple[int, ...] = (2, 3, 4, 4)
    unet_layers: int = 2
    vae_channels: tuple[int, ...] = (8, 8, 16, 16)
    text_width: int = 32
    text_layers: int = 2
    text_heads: int = 2
    norm_groups: int = 8
    max_tokens: int = 77
    words: Sequence[str] = WORDS


def write_tiny_diffusion(
    folder: str | os.PathLike,
    seed: int = 0,
    sizes: TinySizes | None = None,
    family: str = "sd21",
    dtype: torch.dtype = torch.float16,
) -> str:
    """Writes a Stable Diffusion model with random weights.

    Args:
        folder: Output folder, created if it does not exist; an earlier model in it is replaced.
        seed: Seed of the weights; the global random state does not change.
        sizes: Sizes of the model.
        family: Topology of the model: ``sd15``, ``sd21`` or ``sdxl``.
        dtype: Type of the stored weights of UNet and VAE.

    Returns:
        The folder, for ``MODEL.DIFFPS.BACKBONE.MODEL``.
    """
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; allowed: {FAMILIES}")
    sizes = sizes or TinySizes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = build_pipeline(sizes, family)
    save_pipeline(pipeline, folder, dtype)
    for place in Path(folder).glob("tokenizer*"):
        write_vocabulary(place, sizes.words)
    return os.fspath(folder)


def save_pipeline(pipeline: Any, folder: str | os.PathLike, dtype: torch.dtype) -> None:
    """Writes a pipeline of tiny models in a form that all versions of the libraries read.

    Text encoders are stored in float32: transformers loads a model in its stored type, diffusers in
    float32, and the parts of a pipeline loaded with default options must fit together.
    """
    for model in (pipeline.unet, pipeline.vae):
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)
    with no_progress_bars():
        pipeline.save_pretrained(folder, safe_serialization=True)
    for file in Path(folder).glob("text_encoder*/model.safetensors"):
        # transformers 5 omits a prefix that earlier versions require, and reads both
        weights = load_file(file)
        prefixes = ("text_model.", "text_projection.")
        save_file(
            {n if n.startswith(prefixes) else f"text_model.{n}": x for n, x in weights.items()},
            file,
            {"format": "pt"},
        )


def write_random_like(
    model: str | os.PathLike,
    folder: str | os.PathLike,
    seed: int = 0,
    keep: Sequence[str] = (),
    dtype: torch.dtype = torch.float16,
) -> str:
    """Writes a copy of a small model with random weights.

    Args:
        model: Folder in diffusers format, of the family ``sd15`` or ``sd21``.
        folder: Output folder, created if it does not exist.
        seed: Seed of the weights.
        keep: Parts whose weights are kept: ``unet``, ``vae`` or ``text_encoder``.
        dtype: Type of the stored weights of UNet and VAE.

    Returns:
        The output folder.
    """
    from diffusers import StableDiffusionPipeline

    unknown = [part for part in keep if part not in RANDOM_PARTS]
    if unknown:
        raise ValueError(f"unknown parts to keep: {unknown}; allowed: {RANDOM_PARTS}")
    if not Path(model, "model_index.json").is_file():
        raise FileNotFoundError(
            f"{str(model)!r} is not a folder in diffusers format: it has no model_index.json"
        )
    with no_progress_bars():
        pipeline = StableDiffusionPipeline.from_pretrained(
            model, local_files_only=True, low_cpu_mem_usage=False
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in RANDOM_PARTS:
            # drawn in any case, so that the kept parts do not change the others
            old = getattr(pipeline, part)
            make = type(old) if part == "text_encoder" else type(old).from_config
            new = make(old.config)
            if part not in keep:
                setattr(pipeline, part, new)
    save_pipeline(pipeline, folder, dtype)
    for name in ("vocab.json", "merges.txt"):
        source = Path(model, "tokenizer", name)
        if source.is_file():
            Path(folder, "tokenizer", name).write_bytes(source.read_bytes())
    return os.fspath(folder)


def build_pipeline(sizes: TinySizes, family: str, prediction: str = "epsilon") -> Any:
    """Builds a diffusers pipeline with random weights from the global generator."""
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    tokenizer = build_tokenizer(sizes.words, sizes.max_tokens)
    parts = {
        "vae": _build_vae(sizes, family),
        "unet": UNet2DConditionModel(**_unet_config(sizes, family)),
        "text_encoder": _build_text_encoder(sizes, tokenizer),
        "tokenizer": tokenizer,
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            prediction_type=prediction,
        ),
    }
    if family == "sdxl":
        second = build_tokenizer(sizes.words, sizes.max_tokens)
        return StableDiffusionXLPipeline(
            **parts,
            tokenizer_2=second,
            text_encoder_2=_build_text_encoder(sizes, second, projection=True),
        )
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _unet_config(sizes: TinySizes, family: str) -> dict[str, Any]:
    """Returns the arguments of ``UNet2DConditionModel`` for the topology of the family."""
    coarsest = len(sizes.unet_channels) - 1
    config = {
        "sample_size": 8,
        "layers_per_block": sizes.unet_layers,
        "down_block_types": ("CrossAttnDownBlock2D",) * coarsest + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * coarsest,
        "norm_num_groups": sizes.norm_groups,
        "block_out_channels": sizes.unet_channels,
        "attention_head_dim": sizes.unet_heads,  # diffusers reads it as the number of heads
        "cross_attention_dim": sizes.text_width,
        "use_linear_projection": family != "sd15",
    }
    if family == "sd15":
        config["attention_head_dim"] = 2  # the same number of heads everywhere
    if family == "sdxl":
        time_width = 8
        config |= {
            "block_out_channels": sizes.unet_channels[:3],
            "attention_head_dim": sizes.unet_heads[:3],
            "cross_attention_dim": 2 * sizes.text_width,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": time_width,
            "projection_class_embeddings_input_dim": sizes.text_width + 6 * time_width,
        }
    return config


def _build_vae(sizes: TinySizes, family: str) -> Any:
    from diffusers import AutoencoderKL

    stages = len(sizes.vae_channels)
    return AutoencoderKL(
        block_out_channels=sizes.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=sizes.norm_groups,
        sample_size=64,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
    )


def _build_text_encoder(
    sizes: TinySizes, tokenizer: "CLIPTokenizer", projection: bool = False
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_width,
        intermediate_size=2 * sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=sizes.max_tokens,
        projection_dim=sizes.text_width,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


# ---- vocabulary -------------------------------------------------------------------------------
def build_tokenizer(words: Iterable[str] = WORDS, max_tokens: int = 77) -> "CLIPTokenizer":
    """Builds a CLIP tokenizer for which each of ``words`` is one token."""
    from transformers import CLIPTokenizer

    # from files, which every version of transformers reads
    with tempfile.TemporaryDirectory() as folder:
        paths = write_vocabulary(Path(folder), words)
        return CLIPTokenizer(*map(str, paths), model_max_length=max_tokens)


def build_vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Builds a byte pair encoding in which every word is one token.

    Words are processed in order. Each gets the merges that it still needs, with a lower priority
    than all before, so later words do not change earlier ones.

    Args:
        words: Words that become single tokens.

    Returns:
        Token -> id (all bytes, all bytes that end a word, merged tokens, start, end), and the
        merges by descending priority.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        symbols = _encode([*word[:-1], word[-1] + _WORD_END], ranks)
        while len(symbols) > 1:
            ranks[symbols[0], symbols[1]] = len(ranks)
            symbols = _encode(symbols, ranks)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + _WORD_END for byte in alphabet), *map("".join, ranks)]
    tokens = list(dict.fromkeys(tokens)) + [_START, _END]
    return {token: index for index, token in enumerate(tokens)}, list(ranks)


def _encode(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Encodes symbols by joining the pair of the highest priority until none is left."""
    while pairs := [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        joined, index = [], 0
        while index < len(symbols):
            step = 2 if tuple(symbols[index : index + 2]) == best else 1
            joined.append("".join(symbols[index : index + step]))
            index += step
        symbols = joined
    return symbols


def write_vocabulary(folder: Path, words: Iterable[str]) -> tuple[Path, Path]:
    """Writes ``vocab.json`` and ``merges.txt``, which transformers 4 reads; returns their paths."""
    vocabulary, merges = build_vocabulary(words)
    paths = folder / "vocab.json", folder / "merges.txt"
    paths[0].write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    paths[1].write_text("\n".join(lines), encoding="utf-8")
    return paths
