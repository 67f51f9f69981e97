# SPDX-License-Identifier: Apache-2.0
"""Weights with other names: Caffe2 blobs, and state dicts of a part of the model.

Two steps, both on names: Caffe2's are translated by rules; then every parameter of the model looks
for the longest name in the file that it ends with.
"""

import logging
import re

import torch

# (pattern, replacement), applied in this order to names whose "_" became ".".
_BASIC_RULES = [
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    # Normalization: scale, shift and running statistics under their various names.
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

# The same for detectors. FPN's names carry the last block of the stage they start from.
_DETECTOR_RULES = [
    (r"^fpn\.inner\.res(\d+)\.\d+\.sum(\.lateral)?\.", r"fpn_lateral\1."),
    (r"^fpn\.res(\d+)\.\d+\.sum\.", r"fpn_output\1."),
    # With FPN the one RPN head is stored under the name of the finest level.
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
    """Translate Caffe2 names of typical backbones; one name out for each name in."""
    classifier = {"pred_b": "linear_b", "pred_w": "linear_w"}
    names = [classifier.get(name, name).replace("_", ".") for name in original_keys]
    return _apply_rules(names, _BASIC_RULES)


def _move_background(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Caffe2 detectors count the background as class 0; here it is last and has no box."""
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
    """Translate the weights of a Caffe2 backbone or box detector.

    Args:
        weights: Caffe2 name -> tensor.

    Returns:
        new name -> tensor, and new name -> Caffe2 name.
    """
    logging.getLogger(__name__).info(f"Translating the names of {len(weights)} Caffe2 weights")
    original = sorted(weights)
    names = _apply_rules(convert_basic_c2_names(original), _DETECTOR_RULES)
    assert len(set(names)) == len(names), "Two Caffe2 names became the same name"
    new_weights, original_names = {}, {}
    for name, old_name in zip(names, original, strict=True):
        new_weights[name] = _move_background(name, weights[old_name])
        original_names[name] = old_name
    return new_weights, original_names


def _find_matches(model_keys: list[str], ckpt_keys: list[str]) -> dict[str, str]:
    """model key -> the longest checkpoint key that is the same or a dotted ending of it."""
    available = set(ckpt_keys)
    matches = {}
    for key in model_keys:
        parts = key.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        found = next((ending for ending in endings if ending in available), None)
        if found is not None:
            matches[key] = found
    return matches


def align_and_update_state_dicts(
    model_state_dict: dict, ckpt_state_dict: dict, c2_conversion: bool = True
) -> dict:
    """Rename a checkpoint's weights to the names that a model has for them.

    A model's parameter takes the longest name in the checkpoint that its own name ends with, dots
    respected: `backbone.bottom_up.res2.0.conv1.weight` finds `res2.0.conv1.weight` before it
    would find `conv1.weight`. Weights whose shape does not fit are reported and stay under their
    own name, as do those that nothing asks for.

    Args:
        model_state_dict: state dict of the model.
        ckpt_state_dict: state dict from the file.
        c2_conversion: translate Caffe2 names first.

    Returns:
        The checkpoint's weights under their new names.

    Raises:
        ValueError: two parameters of the model ask for the same weight.
    """
    logger = logging.getLogger(__name__)
    if c2_conversion:
        ckpt_state_dict, _ = convert_c2_detectron_names(ckpt_state_dict)

    taken: dict[str, str] = {}  # checkpoint key -> model key
    result = {}
    for key, ckpt_key in _find_matches(sorted(model_state_dict), sorted(ckpt_state_dict)).items():
        weight, wanted = ckpt_state_dict[ckpt_key], model_state_dict[key].shape
        if weight.shape != wanted:
            logger.warning(
                f"Shape of {ckpt_key} in checkpoint is {weight.shape}, "
                f"while shape of {key} in model is {wanted}."
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
        logger.warning("Not one name in the checkpoint fits a parameter of the model")
        return ckpt_state_dict
    _log_matches(sorted(result))
    for name, weight in ckpt_state_dict.items():
        if name not in taken:
            result[name] = weight
    return result


def _log_matches(model_keys: list[str]) -> None:
    """One line with the part of the model that was filled."""
    groups = _group_keys_by_module(model_keys, {key: key for key in model_keys})
    num_groups = len({tuple(group) for group in groups.values()})
    columns = zip(*(key.split(".") for key in model_keys), strict=False)
    where = ".".join(parts[0] for parts in columns if len(set(parts)) == 1) or "model"
    logging.getLogger(__name__).info(
        f"Following weights matched with submodule {where} - Total num: {num_groups}"
    )


def _group_keys_by_module(keys: list[str], original_names: dict[str, str]) -> dict:
    """Sort parameter names into groups of one layer and its normalization.

    Args:
        keys: names of parameters.
        original_names: names -> what to list for them.

    Returns:
        name -> all names of its group, as listed; names without a dot are left out.
    """
    groups: dict[str, list[str]] = {}
    for key in keys:
        module, dot, _ = key.rpartition(".")
        if not dot or key in groups:
            continue
        members = [other for other in keys if other.startswith(module + ".")]
        listed = [original_names[other] for other in members]
        for member in members:
            groups[member] = listed
    return groups


def _longest_common_prefix(names: list[str]) -> str:
    """The whole dotted parts with which all names begin: ["a.zfg", "a.zef"] -> "a."."""
    split = [name.split(".") for name in names]
    common = []
    for parts in zip(*(parts[:-1] for parts in split), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) + "." if common else ""


def _longest_common_prefix_str(names: list[str]) -> str:
    """The characters with which all names begin."""
    first, last = min(names), max(names)
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return first[:length]


def _group_str(names: list[str]) -> str:
    """Several names as one: ["a.w", "a.b"] -> "a.{w,b}"."""
    prefix = _longest_common_prefix_str(names)
    return prefix + "{" + ",".join(name[len(prefix) :] for name in names) + "}"
