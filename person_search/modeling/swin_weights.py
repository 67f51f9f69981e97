# SPDX-License-Identifier: Apache-2.0
"""A Swin Transformer that loads pre-trained weights under the names of four sources.

=========== ====================================== ============================== ===============
source      block                                  between stages i and i + 1     last norm, head
=========== ====================================== ============================== ===============
official    ``layers.i.blocks.j.mlp.fc1``          ``layers.i.downsample``        ``norm, head``
timm        ``layers.i.blocks.j.mlp.fc1``          ``layers.{i + 1}.downsample``  ``norm, head``
torchvision ``features.{2i + 1}.j.mlp.0``          ``features.{2i + 2}``          ``norm, head``
SOLIDER     ``stages.i.blocks.j.ffn.layers.0.0``   ``stages.i.downsample``        ``norm3, head``
=========== ====================================== ============================== ===============

The backbone uses the official names. Its norm of the last stage takes the weights of ``norm``. The
norms of the other stages have no counterpart, except in SOLIDER, and stay as initialized. The head
is left out.

SOLIDER (Chen et al., CVPR 2023) uses the layout of OpenMMLab, in which the patch merging orders its
inputs by channel instead of by pixel. After each merging, it scales and shifts the channels by a
function of a semantic weight. For a fixed semantic weight this is a part of the linear layer.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import SwinTransformer
from torch import Tensor, nn

_NUM_EXAMPLES = 4
# Made by the network itself; sizes and shapes differ between the sources.
_COMPUTED = ("attn_mask", "relative_position_index")
_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")
_SOLIDER = re.compile(r"^(backbone\.)?stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight$")


class PretrainedSwin(SwinTransformer):
    """Detectron2's Swin Transformer with the hook ``adapt_weights`` for pre-trained weights.

    Args:
        semantic_weight: Semantic weight of SOLIDER in 0 .. 1; -1 for none. With it, the linear
            layers of the patch merging have a bias.
        **kwargs: As in Detectron2.
    """

    def __init__(self, *, semantic_weight: float = -1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.semantic_weight = semantic_weight
        if semantic_weight >= 0:
            for layer in self.layers[:-1]:
                linear = layer.downsample.reduction
                linear.bias = nn.Parameter(torch.zeros(linear.out_features))

    def adapt_weights(self, weights: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
        """Gives pre-trained weights the names of this backbone.

        Args:
            weights: Weights of any source.
            prefix: Name of this module in the model, with a trailing dot.

        Returns:
            The renamed weights, completed by what the network computes itself. ``weights`` itself
            if they are for another network, or for this very model (a training checkpoint).

        Raises:
            ValueError: If a weight of the backbone is missing, has another shape, or is left over.
        """
        # pre-trained weights have no norm at the end of each stage, so these reveal a checkpoint
        own_norms = tuple(f"{prefix}norm{i}.weight" for i in self.out_indices)
        official = to_official_names(weights)
        if official is None or any(key.endswith(own_norms) for key in weights):
            return weights
        last = f"norm{self.num_layers - 1}"
        renamed = {re.sub(r"^norm\.", f"{last}.", k): v for k, v in official.items()}
        renamed = self._without_control(renamed)
        # norms of stages that are not outputs
        renamed = {k: v for k, v in renamed.items() if k[:4] != "norm" or hasattr(self, k[:5])}
        self._check_fit(renamed)
        renamed |= {k: v for k, v in self.named_buffers() if k.endswith(_COMPUTED)}
        return {prefix + name: weight for name, weight in renamed.items()}

    def _without_control(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Folds SOLIDER's semantic control into the patch merging, or removes it."""
        rest = {k: v for k, v in weights.items() if not k.startswith("semantic_embed_")}
        if self.semantic_weight < 0:
            return rest
        if len(rest) == len(weights):
            raise ValueError(
                f"has no semantic control, but MODEL.SWIN.SEMANTIC_WEIGHT is "
                f"{self.semantic_weight}; set it to -1"
            )
        degrees = torch.tensor([self.semantic_weight, 1 - self.semantic_weight])
        for stage in range(self.num_layers - 1):
            scale, shift = (
                F.linear(
                    degrees,
                    weights[f"semantic_embed_{kind}.{stage}.weight"].float(),
                    weights[f"semantic_embed_{kind}.{stage}.bias"].float(),
                )
                for kind in "wb"
            )
            key = f"layers.{stage}.downsample.reduction"
            rest[f"{key}.weight"] = rest[f"{key}.weight"] * F.softplus(scale)[:, None]
            rest[f"{key}.bias"] = shift
        return rest

    def _check_fit(self, weights: dict[str, Tensor]) -> None:
        wanted = {name: tuple(p.shape) for name, p in self.named_parameters()}
        missing = [k for k in wanted if k not in weights and not re.match(r"norm\d+\.", k)]
        left_over = [k for k in weights if k not in wanted]
        shapes = [
            f"{k} {tuple(weights[k].shape)} in the file, {shape} in the model"
            for k, shape in wanted.items()
            if k in weights and tuple(weights[k].shape) != shape
        ]
        if not (missing or left_over or shapes):
            return
        hint = "MODEL.SWIN.EMBED_DIM, DEPTHS and HEADS must be those of the weights."
        tables = [k for k in shapes if "relative_position_bias_table" in k]
        if tables:
            side = (weights[tables[0].split(" ")[0]].shape[0] ** 0.5 + 1) / 2
            hint = f"Its windows have {side:.0f} tokens a side (MODEL.SWIN.WINDOW_SIZE). {hint}"
        raise ValueError(
            "is for another Swin Transformer than MODEL.SWIN describes.\n"
            f"  missing from the file: {_examples(missing)}\n"
            f"  different shape: {_examples(shapes)}\n"
            f"  only in the file: {_examples(left_over)}\n{hint}"
        )


def to_official_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns the weights under the official names, without head; None if not for a Swin.

    Raises:
        ValueError: If they are for Swin V2, another architecture with similar names.
    """
    solider = next(filter(None, map(_SOLIDER.match, state_dict)), None)
    if solider is not None:
        return _from_solider(state_dict, solider[1] or "")
    is_torchvision = any(re.match(r"features\.\d+\.\d+\.attn\.qkv\.", key) for key in state_dict)
    if not is_torchvision and "layers.0.blocks.0.attn.qkv.weight" not in state_dict:
        return None
    if any(key.endswith("attn.logit_scale") for key in state_dict):
        raise ValueError("is for Swin V2, but the model is a Swin Transformer (V1)")
    kept = {
        key: weight
        for key, weight in state_dict.items()
        if not key.startswith("head.") and not key.endswith(_COMPUTED)
    }
    if is_torchvision:
        return {_from_torchvision(key): weight for key, weight in kept.items()}
    stages_with_downsample = {int(m[1]) for m in map(_DOWNSAMPLE.match, kept) if m}
    if 0 in stages_with_downsample or not stages_with_downsample:
        return kept
    # timm: the downsampling belongs to the stage that it leads to
    return _move_downsample(kept, -1)


def to_timm_names(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of :func:`to_official_names` under the names of timm."""
    return _move_downsample(official, 1)


def _move_downsample(weights: Mapping[str, Tensor], stages: int) -> dict[str, Tensor]:
    return {
        _DOWNSAMPLE.sub(lambda m: f"layers.{int(m[1]) + stages}.downsample.", key): weight
        for key, weight in weights.items()
    }


def _from_torchvision(key: str) -> str:
    match = re.match(r"features\.(\d+)\.(.+)", key)
    if match is None:
        return key
    index, rest = int(match[1]), match[2]
    if index == 0:
        return re.sub(r"^0\.", "patch_embed.proj.", re.sub(r"^2\.", "patch_embed.norm.", rest))
    stage, is_merging = divmod(index - 1, 2)
    if is_merging:
        return f"layers.{stage}.downsample.{rest}"
    rest = rest.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    return f"layers.{stage}.blocks.{rest}"


def _from_solider(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = {
        r"^patch_embed\.projection\.": "patch_embed.proj.",
        r"^stages\.": "layers.",
        r"\.attn\.w_msa\.": ".attn.",
        r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
        r"\.ffn\.layers\.1\.": ".mlp.fc2.",
    }
    last = max(int(m[1]) for key in weights if (m := re.match(rf"{prefix}stages\.(\d+)\.", key)))
    names[rf"^norm{last}\."] = "norm."
    official = {}
    for key, weight in weights.items():
        if not key.startswith(prefix) or key.endswith(_COMPUTED):
            continue
        key = key.removeprefix(prefix)
        for old, new in names.items():
            key = re.sub(old, new, key)
        if _DOWNSAMPLE.match(key):  # (..., C, row, column) to (..., column, row, C)
            cells = weight.unflatten(-1, (-1, 2, 2))
            weight = cells.transpose(-3, -1).flatten(-3)
        if not key.startswith("head."):
            official[key] = weight
    return official


def _examples(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_EXAMPLES} more" if len(names) > _NUM_EXAMPLES else ""
    return ", ".join(names[:_NUM_EXAMPLES]) + more if names else "-"
