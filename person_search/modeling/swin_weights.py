# SPDX-License-Identifier: Apache-2.0
"""ImageNet weights of Swin Transformers under the names of Detectron2's backbone.

Three namings are read:

=========== ====================================== ============================== ===============
source      block                                  between stages i and i + 1     last norm, head
=========== ====================================== ============================== ===============
official    ``layers.i.blocks.j.mlp.fc1``          ``layers.i.downsample``        ``norm, head``
timm        ``layers.i.blocks.j.mlp.fc1``          ``layers.{i + 1}.downsample``  ``norm, head``
torchvision ``features.{2i + 1}.j.mlp.0``          ``features.{2i + 2}``          ``norm, head``
=========== ====================================== ============================== ===============

The backbone uses the official names. Its norm of the last stage takes the weights of ``norm``; the
norms of the other stages have no counterpart and stay as initialised. The head is left out.
"""

import re
from collections.abc import Mapping

from detectron2.modeling import SwinTransformer
from torch import Tensor, nn

_NUM_EXAMPLES = 4
# Made by the network itself; sizes and shapes differ between the sources.
_COMPUTED = ("attn_mask", "relative_position_index")


class SwinWeightsError(ValueError):
    """The weights are of a Swin Transformer, but not of the one in the config."""


def adapt_swin_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Gives pre-trained Swin weights the names that they have in ``model``.

    Args:
        model: one that may hold a Swin Transformer, e.g. as ``backbone.bottom_up``.
        state_dict: weights of any source.

    Returns:
        The renamed weights, completed by what the model computes itself. The very same object where
        nothing is to be renamed: the model has no Swin Transformer, the weights are of another
        network, or are of this very model (a training checkpoint).

    Raises:
        SwinWeightsError: a weight of the backbone is missing, of another shape, or left over.
    """
    prefix, swin = _find_swin(model)
    # Pre-trained weights have no norm at the end of each stage, so these tell a checkpoint.
    own_norms = tuple(f"{prefix}norm{i}.weight" for i in swin.out_indices) if swin else ()
    if swin is None or any(key.endswith(own_norms) for key in state_dict):
        return state_dict
    weights = to_official_names(state_dict)
    if weights is None:
        return state_dict
    weights = _place_last_norm(weights, swin)
    _check_fit(weights, swin)
    weights |= {k: v for k, v in swin.named_buffers() if k.endswith(_COMPUTED)}
    return {prefix + name: weight for name, weight in weights.items()}


def to_official_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns the weights under the official names, without head; None if they are of no Swin.

    Raises:
        SwinWeightsError: they are of Swin V2, another architecture with similar names.
    """
    is_torchvision = any(re.match(r"features\.\d+\.\d+\.attn\.qkv\.", key) for key in state_dict)
    if not is_torchvision and "layers.0.blocks.0.attn.qkv.weight" not in state_dict:
        return None
    if any(key.endswith("attn.logit_scale") for key in state_dict):
        raise SwinWeightsError("is of Swin V2, the model is a Swin Transformer of the first kind")
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
    return {
        _DOWNSAMPLE.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample.", key): weight
        for key, weight in kept.items()
    }  # timm: the downsampling belongs to the stage that it leads to


_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")


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


def _find_swin(model: nn.Module) -> tuple[str, SwinTransformer | None]:
    for name, module in model.named_modules():
        if isinstance(module, SwinTransformer):
            return (f"{name}." if name else ""), module
    return "", None


def _place_last_norm(weights: dict[str, Tensor], swin: SwinTransformer) -> dict[str, Tensor]:
    """``norm`` -> ``norm3``, or left out where the last stage is no output."""
    last = swin.num_layers - 1
    if not hasattr(swin, f"norm{last}"):
        return {k: v for k, v in weights.items() if not k.startswith("norm.")}
    return {re.sub(r"^norm\.", f"norm{last}.", k): v for k, v in weights.items()}


def _check_fit(weights: dict[str, Tensor], swin: SwinTransformer) -> None:
    wanted = {name: tuple(p.shape) for name, p in swin.named_parameters()}
    optional = re.compile(r"norm\d+\.")
    missing = [k for k in wanted if k not in weights and not optional.match(k)]
    left_over = [k for k in weights if k not in wanted]
    shapes = [
        f"{k} {tuple(weights[k].shape)} in the file, {shape} in the model"
        for k, shape in wanted.items()
        if k in weights and tuple(weights[k].shape) != shape
    ]
    if not (missing or left_over or shapes):
        return
    hints = []
    tables = [k for k in shapes if "relative_position_bias_table" in k]
    if tables:
        name = tables[0].split(" ")[0]
        side = (weights[name].shape[0] ** 0.5 + 1) / 2
        hints.append(f"Its windows have {side:.0f} tokens a side (MODEL.SWIN.WINDOW_SIZE).")
    hints.append("MODEL.SWIN.EMBED_DIM, DEPTHS and HEADS must be those of the weights.")
    raise SwinWeightsError(
        "is of another Swin Transformer than MODEL.SWIN describes.\n"
        f"  missing from the file: {_examples(missing)}\n"
        f"  of another shape: {_examples(shapes)}\n"
        f"  only in the file: {_examples(left_over)}\n" + " ".join(hints)
    )


def _examples(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_EXAMPLES} more" if len(names) > _NUM_EXAMPLES else ""
    return ", ".join(names[:_NUM_EXAMPLES]) + more if names else "-"
