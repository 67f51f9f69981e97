# SPDX-License-Identifier: Apache-2.0
"""Helpers for unit tests of detection code."""

import io

import torch
from detectron2._lite import absent
from detectron2.structures import Boxes, Instances

__getattr__ = absent(
    __name__, "get_model_no_weights", "get_sample_coco_image", "reload_lazy_config"
)


def random_boxes(num_boxes: int, max_coord: float = 100, device="cpu") -> torch.Tensor:
    """Returns (num_boxes, 4) random boxes x0, y0, x1, y1 with sides of at least 1."""
    numbers = torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)
    # IoU-based targets of boxes without area would be NaN
    top_left, size = numbers.clamp(min=1.0).split(2, dim=1)
    return torch.cat((top_left, top_left + size), dim=1)


def reload_script_model(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Saves a compiled module or function and loads it again."""
    with io.BytesIO(module.save_to_buffer()) as file:
        return torch.jit.load(file)


def convert_scripted_instances(instances) -> Instances:
    """Converts an instance of a class made by ``patch_instances`` to ``Instances``."""
    assert hasattr(instances, "image_size"), "the object must have an image_size"
    converted = Instances(instances.image_size)
    for name in instances._field_names:
        value = getattr(instances, "_" + name, None)
        if value is not None:
            converted.set(name, value)
    return converted


def assert_instances_allclose(
    input: Instances, other: Instances, *, rtol: float = 1e-5, msg: str = "", size_as_tensor=False
) -> None:
    """Asserts that two objects have the same image size, fields, and close values.

    Args:
        input: ``Instances``, or an object of a class made by ``patch_instances``.
        other: Object to compare with.
        rtol: Tolerance relative to the largest magnitude of a field.
        msg: Prefix of the error message.
        size_as_tensor: Whether the image sizes are tensors, as in traced models.
    """
    input, other = (
        x if isinstance(x, Instances) else convert_scripted_instances(x) for x in (input, other)
    )
    size, other_size = (
        (torch.as_tensor(x.image_size).tolist() if size_as_tensor else x.image_size)
        for x in (input, other)
    )
    msg = f"{msg}: " if msg else ""
    assert size == other_size, f"{msg}image_size is {size} vs. {other_size}!"
    fields = sorted(input.get_fields())
    other_fields = sorted(other.get_fields())
    assert fields == other_fields, f"{msg}Fields are {fields} vs {other_fields}!"
    for name in fields:
        value, other_value = input.get(name), other.get(name)
        if isinstance(value, Boxes):
            value, other_value = value.tensor, other_value.tensor
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{msg}Cannot compare the field '{name}' of type {type(value)}")
        close = torch.equal(value, other_value)
        if len(value) == len(other_value) > 0 and value.is_floating_point():
            close = bool((value - other_value).abs().max() <= value.abs().max() * rtol)
        assert close, f"{msg}'{name}' has different values:\n{value}\n{other_value}"
