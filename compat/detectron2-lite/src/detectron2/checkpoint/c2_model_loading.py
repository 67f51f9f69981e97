# SPDX-License-Identifier: Apache-2.0
"""Matching of the names of weights: Caffe2 blobs, and state dicts of a part of the model.

Names of Caffe2 are converted by rules. Then every parameter of the model is matched with the
longest name in the file that is a suffix of its own name.
"""

import logging
import os
import re

import torch

# (pattern, replacement), applied in this order to names with "." instead of "_".
_BASIC_RULES = [
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    # Normalization: scale, shift and running statistics.
    (r"[bg]n\.(s|gamma)$", "norm.weight"),
    (r"[bg]n\.(bias|beta)$", "norm.bias"),
    (r"bn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"bn\.(riv|running\.var)$", "norm.running_var"),
    # ResNet: stem and residual branches.
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
]

# Rules of detectors. The names of FPN contain the last block of each stage.
_DETECTOR_RULES = [
    (r"^fpn\.inner\.res(\d+)\.\d+\.sum(\.lateral)?\.", r"fpn_lateral\1."),
    (r"^fpn\.res(\d+)\.\d+\.sum\.", r"fpn_output\1."),
    # With FPN, the shared RPN head has the name of the finest level.
    (r"^conv\.rpn(\.fpn\d+)?\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.bbox\.pred(\.fpn\d+)?\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rpn\.cls\.logits(\.fpn\d+)?\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^bbox\.pred", "bbox_pred"),
    (r"^cls\.score", "cls_score"),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv", "box_head.conv"),
]


def _apply_rules(names: list[str], rules: list[tuple[str, str]]) -> list[str]:
    for pattern, replacement in rules:
        names = [re.sub(pattern, replacement, name) for name in names]
    return names


def convert_basic_c2_names(original_keys: list[str]) -> list[str]:
    """Converts the Caffe2 names of a backbone."""
    classifier = {"pred_b": "linear_b", "pred_w": "linear_w"}
    names = [classifier.get(name, name).replace("_", ".") for name in original_keys]
    return _apply_rules(names, _BASIC_RULES)


def _move_background(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Moves the weights of the background class, the first one in Caffe2, to the end."""
    logger = logging.getLogger(__name__)
    if name.startswith("bbox_pred."):
        kept = weight[4:]
        logger.info(
            f"Remove prediction weight for background class in {name}. "
            f"The shape changes from {tuple(weight.shape)} to {tuple(kept.shape)}."
        )
        return kept
    if name.startswith("cls_score."):
        logger.info(
            f"Move classification weights for background class in {name} "
            f"from index 0 to index {weight.shape[0] - 1}."
        )
        return torch.cat([weight[1:], weight[:1]])
    return weight


def convert_c2_detectron_names(weights: dict) -> tuple[dict, dict]:
    """Converts the names of the weights of a Caffe2 backbone or box detector.

    Args:
        weights: Dict from Caffe2 name to tensor.

    Returns:
        Dict from new name to tensor, and dict from new name to Caffe2 name.
    """
    logging.getLogger(__name__).info(f"Renaming {len(weights)} Caffe2 weights ...")
    original = sorted(weights)
    names = _apply_rules(convert_basic_c2_names(original), _DETECTOR_RULES)
    assert len(set(names)) == len(names), "two Caffe2 names were converted to the same name"
    new_weights, original_names = {}, {}
    for name, old_name in zip(names, original, strict=True):
        new_weights[name] = _move_background(name, weights[old_name])
        original_names[name] = old_name
    return new_weights, original_names


def align_and_update_state_dicts(
    model_state_dict: dict, ckpt_state_dict: dict, c2_conversion: bool = True
) -> dict:
    """Renames the weights of a checkpoint to the names in a model.

    A parameter of the model is matched with the longest name in the checkpoint that is a suffix of
    its name: ``backbone.bottom_up.res2.0.conv1.weight`` matches ``res2.0.conv1.weight`` rather than
    ``conv1.weight``. Weights with a wrong shape are logged and, like unused weights, not renamed.

    Args:
        model_state_dict: State dict of the model.
        ckpt_state_dict: State dict of the checkpoint.
        c2_conversion: Whether to convert Caffe2 names first.

    Returns:
        Dict from new name to weight.

    Raises:
        ValueError: Two parameters of the model match the same weight.
    """
    logger = logging.getLogger(__name__)
    if c2_conversion:
        ckpt_state_dict, _ = convert_c2_detectron_names(ckpt_state_dict)

    taken: dict[str, str] = {}  # checkpoint key -> model key
    result = {}
    for key in sorted(model_state_dict):
        parts = key.split(".")
        suffixes = (".".join(parts[start:]) for start in range(len(parts)))
        ckpt_key = next((suffix for suffix in suffixes if suffix in ckpt_state_dict), None)
        if ckpt_key is None:
            continue
        weight, shape = ckpt_state_dict[ckpt_key], model_state_dict[key].shape
        if weight.shape != shape:
            logger.warning(
                f"Shape of {ckpt_key} in checkpoint is {weight.shape}, "
                f"while shape of {key} in model is {shape}."
            )
            logger.warning(
                f"{ckpt_key} will not be loaded. Please double check and see if this is desired."
            )
            continue
        if ckpt_key in taken:
            logger.error(
                f"Ambiguity found for {ckpt_key} in checkpoint!"
                f"It matches at least two keys in the model ({key} and {taken[ckpt_key]})."
            )
            raise ValueError(
                f"{key} and {taken[ckpt_key]} of the model both match {ckpt_key} of the checkpoint"
            )
        taken[ckpt_key] = key
        result[key] = weight

    if not taken:
        logger.warning("The checkpoint has no weights with names of the model")
        return ckpt_state_dict
    # a layer and its normalization count as one
    layers = {key.rpartition(".")[0].removesuffix(".norm") for key in result}
    logger.info(
        "Following weights matched with submodule "
        f"{_longest_common_prefix_str(list(result)).rpartition('.')[0] or 'model'} - "
        f"Total num: {len(layers)}"
    )
    for name, weight in ckpt_state_dict.items():
        if name not in taken:
            result[name] = weight
    return result


def _longest_common_prefix_str(names: list[str]) -> str:
    return os.path.commonprefix(names)
