# SPDX-License-Identifier: Apache-2.0
"""Text of the frozen model, encoded once, so that the text encoder need not stay loaded.

The text is encoded when the backbone is built, or read from ``BACKBONE.TEXT_EMBEDS_FILE``. That
safetensors file belongs to one model: it holds a sample of the UNet weights that read the text, and
is refused for a UNet with other weights. ``projects/DiffPS/tools/encode_text.py`` writes it.

Shape shorthand: T tokens (77), D width of the condition, P width of SDXL's pooled text.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffps.loading import DiffusionFolder

_KEY = "MODEL.DIFFPS.BACKBONE"
_WORD_POSITION = 1  # after the start token
_WORD_END = "</w>"  # in the vocabulary of CLIP

_FORMAT = "1"
_PER_LAYER = 8  # values of each layer in the sample of weights
_WORD = "word."  # prefix of the names of word vectors


@dataclass(frozen=True)
class TextConditioning:
    """Encoded text for the UNet and SFAN.

    Attributes:
        context: Encoded prompt, (1, T, D) float32.
        pooled: Pooled prompt, (1, P) float32, for UNets of the SDXL shape; otherwise None.
        word_vectors: Word -> (D,) float32, its row in the encoding of the word alone.
        token: Position in the prompt of the word that attention maps are taken of.
        positions: Single-token word of the prompt -> its first position; the start token is 0.
    """

    context: Tensor
    pooled: Tensor | None
    word_vectors: dict[str, Tensor]
    token: int
    positions: dict[str, int] = field(default_factory=dict)


def get_text(cfg: CfgNode, folder: DiffusionFolder, unet: nn.Module) -> TextConditioning:
    """Returns the text of a config, from ``BACKBONE.TEXT_EMBEDS_FILE`` or encoded."""
    config = cfg.MODEL.DIFFPS.BACKBONE
    words = [*cfg.MODEL.DIFFPS.SFAN.PARTS, *config.WORDS]
    map_word = config.ATTN.WORD if len(config.ATTN.LAYERS) else None
    if config.TEXT_EMBEDS_FILE:
        path = os.path.expanduser(config.TEXT_EMBEDS_FILE)
        return load_text(path, config.PROMPT, words, map_word, unet)
    return encode_text(folder, config.PROMPT, words, map_word)


# ---- encoding -----------------------------------------------------------------------------------
@torch.no_grad()
def encode_text(
    folder: DiffusionFolder, prompt: str, words: Iterable[str] = (), map_word: str | None = None
) -> TextConditioning:
    """Loads the text encoders, encodes the text and releases them.

    Args:
        folder: Model with the text encoders.
        prompt: Condition of the UNet.
        words: Words to encode alone; each must be a single token.
        map_word: Word of the prompt that attention maps are taken of. Empty if the prompt is that
            word; None if no maps are needed, which allows any prompt.

    Raises:
        ValueError: If a word has several tokens or is not in the prompt, or the prompt is too long.
    """
    second = folder.has("text_encoder_2")
    encoders = [folder.load_text_encoder()] + ([folder.load_text_encoder(True)] if second else [])
    tokenizer = encoders[0][0]
    token = _WORD_POSITION if map_word is None else _position(tokenizer, prompt, map_word)
    context, pooled = _encode(encoders, prompt, f"{_KEY}.PROMPT")
    vectors = {}
    for word in dict.fromkeys(words):
        _single_token(tokenizer, word, f"a word to encode ({_KEY}.WORDS, SFAN.PARTS)")
        vectors[word] = _encode(encoders, word, f"{_KEY}.WORDS")[0][0, _WORD_POSITION].clone()
    tokens = _tokens(tokenizer, prompt)
    if len(tokens) == 1:
        vectors.setdefault(prompt, context[0, _WORD_POSITION].clone())
    positions: dict[str, int] = {}
    for index, piece in enumerate(tokenizer.convert_ids_to_tokens(tokens)):
        if piece.endswith(_WORD_END):  # a token that does not end a word is a piece of one
            positions.setdefault(piece.removesuffix(_WORD_END), _WORD_POSITION + index)
    return TextConditioning(context, pooled, vectors, token, positions)


def _encode(encoders: list, text: str, key: str) -> tuple[Tensor, Tensor | None]:
    """Returns the context (1, T, D) and the pooled vector (1, P) of SDXL or None.

    With one encoder the context is its output after the final layer norm; SDXL concatenates the
    outputs of the penultimate layers of both.
    """
    contexts, pooled = [], None
    for tokenizer, encoder in encoders:
        length = tokenizer.model_max_length
        count = len(tokenizer(text).input_ids)
        if count > length:
            raise ValueError(
                f"{key}: {text!r} has {count} tokens; the text encoder takes {length}."
            )
        ids = tokenizer(text, padding="max_length", max_length=length, return_tensors="pt")
        output = encoder(ids.input_ids, output_hidden_states=len(encoders) > 1)
        if len(encoders) == 1:
            return output.last_hidden_state, None
        contexts.append(output.hidden_states[-2])
        pooled = getattr(output, "text_embeds", None)
    return torch.cat(contexts, dim=-1), pooled


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """Returns the token ids of a text, without start and end."""
    return tokenizer(text).input_ids[1:-1]


def _single_token(tokenizer: Any, word: str, what: str) -> int:
    ids = _tokens(tokenizer, word)
    if len(ids) != 1:
        raise ValueError(
            f"{word!r}, {what}, has {len(ids)} tokens in this text encoder: "
            f"{_pieces(tokenizer, ids)}. It must have one; choose another word."
        )
    return ids[0]


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    return [tokenizer.decode([i]).strip() for i in ids]


def _position(tokenizer: Any, prompt: str, map_word: str) -> int:
    """Returns the position of a word in the prompt, counted from the start token."""
    ids = _tokens(tokenizer, prompt)
    if not map_word:
        if len(ids) == 1:
            return _WORD_POSITION
        raise ValueError(
            f"{_KEY}.PROMPT {prompt!r} has {len(ids)} tokens: {_pieces(tokenizer, ids)}. Set "
            f"{_KEY}.ATTN.WORD to the word that the attention map is taken of."
        )
    wanted = _single_token(tokenizer, map_word, f"{_KEY}.ATTN.WORD")
    if wanted not in ids:
        raise ValueError(f"{_KEY}.ATTN.WORD {map_word!r} is not in the prompt {prompt!r}.")
    return _WORD_POSITION + ids.index(wanted)


# ---- file ---------------------------------------------------------------------------------------
def save_text(
    path: str | os.PathLike, text: TextConditioning, prompt: str, unet: nn.Module
) -> None:
    """Writes the encoded prompt and words for the model of ``unet``; replaces an existing file."""
    tensors = {"context": text.context, "unet": sample_weights(unet)}
    if text.pooled is not None:
        tensors["pooled"] = text.pooled
    tensors |= {_WORD + word: vector for word, vector in text.word_vectors.items()}
    metadata = {"format": _FORMAT, "prompt": prompt, "positions": json.dumps(text.positions)}
    save_file({name: x.contiguous().cpu() for name, x in tensors.items()}, path, metadata)


def load_text(
    path: str, prompt: str, words: Iterable[str], map_word: str | None, unet: nn.Module
) -> TextConditioning:
    """Reads a file of :func:`save_text`; the result is that of :func:`encode_text`.

    Args:
        path: File to read.
        prompt: Prompt that the file must hold.
        words: Words that the file must hold.
        map_word: See :func:`encode_text`.
        unet: UNet that the text is for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or is of another prompt, model or set of words.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{_KEY}.TEXT_EMBEDS_FILE: there is no file {path!r}. Write it with "
            "projects/DiffPS/tools/encode_text.py, or leave the key empty to load the text encoder."
        )
    tensors, metadata = _read(path)
    if metadata["prompt"] != prompt:
        raise _error(
            path, f"holds the prompt {metadata['prompt']!r}, but BACKBONE.PROMPT is {prompt!r}"
        )
    vectors = {n.removeprefix(_WORD): x for n, x in tensors.items() if n.startswith(_WORD)}
    missing = [word for word in words if word not in vectors]
    if missing:
        raise _error(
            path,
            f"lacks the words {missing} (BACKBONE.WORDS, SFAN.PARTS); it has {sorted(vectors)}",
        )
    ours, theirs = sample_weights(unet), tensors["unet"]
    # tolerant enough for every dtype that weights are loaded in
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0.02, atol=1e-4):
        raise _error(path, "was written for another model than BACKBONE.MODEL")
    positions, token = json.loads(metadata["positions"]), _WORD_POSITION
    if map_word is not None:
        word = map_word or prompt  # without ATTN.WORD the prompt must be one word
        token = positions.get(word.strip().lower())
        if token is None:
            raise _error(
                path,
                f"has no single token {word!r} (BACKBONE.ATTN.WORD) in the prompt {prompt!r}, "
                f"only {list(positions)}",
            )
    return TextConditioning(tensors["context"], tensors.get("pooled"), vectors, token, positions)


def sample_weights(unet: nn.Module) -> Tensor:
    """Returns a sample of the weights of every text key layer, 1-D float32 on the CPU."""
    weights = [w for name, w in unet.named_parameters() if name.endswith("attn2.to_k.weight")]
    samples = [w.detach().flatten()[:: max(1, w.numel() // _PER_LAYER)] for w in weights]
    return torch.cat([x[:_PER_LAYER].float().cpu() for x in samples])


def _read(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise _error(path, f"is damaged or not a safetensors file ({e})") from e
    if metadata.get("format") != _FORMAT or not {"context", "unet"} <= set(tensors):
        raise _error(path, "does not hold encoded text, or is of another version")
    return tensors, metadata


def _error(path: str, what: str) -> ValueError:
    return ValueError(
        f"{_KEY}.TEXT_EMBEDS_FILE {path!r} {what}. Write it again with "
        "projects/DiffPS/tools/encode_text.py and this config, or leave the key empty to load the "
        "text encoder."
    )
