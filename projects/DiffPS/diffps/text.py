# SPDX-License-Identifier: Apache-2.0
"""Encodes the prompt and single words, once, so that the text encoder need not stay.

Shape shorthand: T tokens (77), D width of the condition.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffps.loading import DiffusionFolder

_KEY = "MODEL.DIFFPS.BACKBONE"
_WORD_POSITION = 1  # after the start token
_WORD_END = "</w>"  # in the vocabulary of CLIP


@dataclass(frozen=True)
class TextConditioning:
    """What the UNet and SFAN need to know of the text."""

    context: Tensor
    """(1, T, D) float32: the encoded prompt."""
    pooled: Tensor | None
    """(1, P) float32 for UNets of the SDXL shape, else None."""
    word_vectors: dict[str, Tensor]
    """Word -> (D,) float32: its position in the encoding of the word alone."""
    token: int
    """Position in the prompt of the word whose attention map is wanted."""
    positions: dict[str, int] = field(default_factory=dict)
    """Word of the prompt that is one token -> its (first) position; the start token is 0."""


@torch.no_grad()
def encode_text(
    folder: DiffusionFolder, prompt: str, words: Iterable[str] = (), map_word: str | None = None
) -> TextConditioning:
    """Loads the text encoders, encodes and lets go of them again.

    Args:
        words: each must be a single token.
        map_word: word of the prompt that attention maps are taken of; empty: the prompt is that
            word; None: no maps are wanted, so any prompt will do.

    Raises:
        ValueError: a word of several tokens, one that the prompt does not have, or a prompt that
            is too long.
    """
    second = folder.has("text_encoder_2")
    encoders = [folder.load_text_encoder()] + ([folder.load_text_encoder(True)] if second else [])
    tokenizer = encoders[0][0]
    token = _WORD_POSITION
    if map_word is not None:
        token = _position(tokenizer, prompt, map_word)
    context, pooled = _encode(encoders, prompt, f"{_KEY}.PROMPT")
    vectors = {}
    for word in dict.fromkeys(words):
        _single_token(tokenizer, word, f"a part or word to be encoded ({_KEY}.WORDS, SFAN.PARTS)")
        vectors[word] = _encode(encoders, word, f"{_KEY}.WORDS")[0][0, _WORD_POSITION].clone()
    if len(_tokens(tokenizer, prompt)) == 1:
        vectors.setdefault(prompt, context[0, _WORD_POSITION].clone())
    return TextConditioning(context, pooled, vectors, token, _word_positions(tokenizer, prompt))


def _encode(encoders: list, text: str, key: str) -> tuple[Tensor, Tensor | None]:
    """Returns the (1, T, D) context and the (1, P) pooled vector (SDXL) or None.

    With one encoder the context is its output after the final layer norm; SDXL takes the output of
    the last but one layer of both, side by side.
    """
    contexts, pooled = [], None
    for tokenizer, encoder in encoders:
        length = tokenizer.model_max_length
        count = len(tokenizer(text).input_ids)
        if count > length:
            raise ValueError(
                f"{key}: {text!r} has {count} tokens; this text encoder takes {length}."
            )
        ids = tokenizer(
            text, padding="max_length", max_length=length, return_tensors="pt"
        ).input_ids
        output = encoder(ids, output_hidden_states=len(encoders) > 1)
        if len(encoders) == 1:
            return output.last_hidden_state, None
        contexts.append(output.hidden_states[-2])
        pooled = getattr(output, "text_embeds", None)
    return torch.cat(contexts, dim=-1), pooled


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without start and end."""
    return tokenizer(text).input_ids[1:-1]


def _word_positions(tokenizer: Any, prompt: str) -> dict[str, int]:
    """Words of a prompt that are one token, with their position."""
    positions: dict[str, int] = {}
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(_tokens(tokenizer, prompt))):
        if token.endswith(_WORD_END):  # what does not end a word is a piece of one
            positions.setdefault(token.removesuffix(_WORD_END), _WORD_POSITION + index)
    return positions


def _single_token(tokenizer: Any, word: str, what: str) -> int:
    ids = _tokens(tokenizer, word)
    if len(ids) != 1:
        pieces = [tokenizer.decode([i]).strip() for i in ids]
        raise ValueError(
            f"{word!r}, {what}, is {len(ids)} tokens to this text encoder: {pieces}. It must be "
            "one; take another word."
        )
    return ids[0]


def _position(tokenizer: Any, prompt: str, map_word: str) -> int:
    """Position of a word in the prompt, counted from the start token."""
    ids = _tokens(tokenizer, prompt)
    if not map_word:
        if len(ids) == 1:
            return _WORD_POSITION
        pieces = [tokenizer.decode([i]).strip() for i in ids]
        raise ValueError(
            f"{_KEY}.PROMPT {prompt!r} is {len(ids)} tokens: {pieces}. Say with {_KEY}.ATTN.WORD "
            "which of them the attention map is to be taken of."
        )
    wanted = _single_token(tokenizer, map_word, f"{_KEY}.ATTN.WORD")
    if wanted not in ids:
        raise ValueError(f"{_KEY}.ATTN.WORD {map_word!r} is not in the prompt {prompt!r}.")
    return _WORD_POSITION + ids.index(wanted)
