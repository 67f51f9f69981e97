# SPDX-License-Identifier: Apache-2.0
"""Encoded text in a file (``BACKBONE.TEXT_EMBEDS_FILE``), so that no text encoder is needed.

The file, in safetensors format, belongs to one model: it holds a sample of the weights with which
its UNet reads text, and is refused where the UNet has others.
``projects/DiffPS/tools/encode_text.py`` writes it.

Shape shorthand: T tokens (77), D width of the condition, P width of SDXL's pooled text.
"""

import json
import os
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffps.loading import DiffusionFolder
from diffps.text import TextConditioning, encode_text

_KEY = "MODEL.DIFFPS.BACKBONE.TEXT_EMBEDS_FILE"
_REMEDY = "Write the file anew with projects/DiffPS/tools/encode_text.py and this config, or leave the key"
_FORMAT = "1"
_PER_LAYER = 8  # values of each layer in the sample of weights
_WORD = "word."  # prefix of the names of word vectors


def get_text(cfg: CfgNode, folder: DiffusionFolder, unet: nn.Module) -> TextConditioning:
    """The text of a config: from ``BACKBONE.TEXT_EMBEDS_FILE``, or encoded if that is empty.

    Args:
        cfg: the whole config. unet: of ``folder``.
    """
    config = cfg.MODEL.DIFFPS.BACKBONE
    words = [*cfg.MODEL.DIFFPS.SFAN.PARTS, *config.WORDS]
    map_word = config.ATTN.WORD if len(config.ATTN.LAYERS) else None
    if config.TEXT_EMBEDS_FILE:
        return load_text(config.TEXT_EMBEDS_FILE, config.PROMPT, words, map_word, unet)
    return encode_text(folder, config.PROMPT, words, map_word)


def save_text(
    path: str | os.PathLike, text: TextConditioning, prompt: str, unet: nn.Module
) -> None:
    """Writes encoded text.

    Args:
        path: of the file, which is replaced.
        text: the encoded ``prompt`` and words. unet: that of the same model.
    """
    tensors = {"context": text.context, "unet": sample_weights(unet)}
    if text.pooled is not None:
        tensors["pooled"] = text.pooled
    tensors |= {_WORD + word: vector for word, vector in text.word_vectors.items()}
    metadata = {
        "format": _FORMAT,
        "prompt": prompt,
        "positions": json.dumps(text.positions),
    }
    save_file({name: x.contiguous().cpu() for name, x in tensors.items()}, path, metadata)


def load_text(
    path: str, prompt: str, words: Iterable[str], map_word: str | None, unet: nn.Module
) -> TextConditioning:
    """Reads what :func:`save_text` wrote; the same as :func:`diffps.text.encode_text` gives.

    Args:
        prompt, words, map_word: see there; all must be in the file.
        unet: that is to be told this text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another prompt, a word that is missing, a file of another model, or none at all.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{_KEY}: there is no file {path!r}. projects/DiffPS/tools/encode_text.py writes it; an empty "
            "key takes the model's text encoder."
        )
    tensors, metadata = _read(path)
    found = metadata["prompt"]
    if found != prompt:
        raise _error(path, f"holds the prompt {found!r}, but BACKBONE.PROMPT is {prompt!r}")
    vectors = {n.removeprefix(_WORD): x for n, x in tensors.items() if n.startswith(_WORD)}
    missing = [word for word in words if word not in vectors]
    if missing:
        raise _error(
            path,
            f"lacks the words {missing} (BACKBONE.WORDS, SFAN.PARTS); it has {sorted(vectors)}",
        )
    ours, theirs = sample_weights(unet), tensors["unet"]
    # wide enough for any type that weights are loaded in
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0.02, atol=1e-4):
        raise _error(path, "was written for another model than BACKBONE.MODEL")
    positions, token = json.loads(metadata["positions"]), 1
    if map_word is not None:
        # without a word of its own the prompt must be one
        token = positions.get((map_word or prompt).strip().lower())
        if token is None:
            raise _error(
                path,
                f"knows no single token {map_word or prompt!r} (BACKBONE.ATTN.WORD) in the prompt "
                f"{prompt!r}, only {list(positions)}",
            )
    return TextConditioning(tensors["context"], tensors.get("pooled"), vectors, token, positions)


def sample_weights(unet: nn.Module) -> Tensor:
    """Some of the weights that make keys out of text, of every layer; 1-D float32, on the CPU."""
    weights = [w for name, w in unet.named_parameters() if name.endswith("attn2.to_k.weight")]
    samples = [w.detach().flatten()[:: max(1, w.numel() // _PER_LAYER)] for w in weights]
    return torch.cat([x[:_PER_LAYER].float().cpu() for x in samples])


def _read(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise _error(path, f"is damaged or no safetensors file ({e})") from e
    if metadata.get("format") != _FORMAT or not {"context", "unet"} <= set(tensors):
        raise _error(path, "holds no encoded text, or that of another version")
    return tensors, metadata


def _error(path: str, what: str) -> ValueError:
    return ValueError(f"{_KEY} {path!r} {what}. {_REMEDY} empty to load the text encoder.")
