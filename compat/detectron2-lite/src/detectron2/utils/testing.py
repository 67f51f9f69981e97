# SPDX-License-Identifier: Apache-2.0
"""Helpers for unit tests of detection code."""

import io
import unittest

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.torch_version_utils import min_torch_version

__all__ = [
    "assert_instances_allclose",
    "convert_scripted_instances",
    "min_torch_version",
    "random_boxes",
    "reload_script_model",
    "skipIfOnCPUCI",
    "skipIfUnsupportedMinTorchVersion",
]


def random_boxes(num_boxes: int, max_coord: float = 100, device="cpu") -> torch.Tensor:
    """Boxes of positive size: top left in the first half of the range, sides up to the other half.

    Returns:
        (num_boxes, 4) XYXY, drawn by PyTorch's global generator.
    """
    numbers = torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)
    # Zero-area boxes would turn IoU-based targets into nan.
    top_left, size = numbers.clamp(min=1.0).split(2, dim=1)
    return torch.cat((top_left, top_left + size), dim=1)


def reload_script_model(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Save a compiled module or function and load it again, to see that nothing gets lost."""
    with io.BytesIO(module.save_to_buffer()) as file:
        return torch.jit.load(file)


def convert_scripted_instances(instances) -> Instances:
    """Copy an object of a class made by `patch_instances` to ordinary `Instances`."""
    assert hasattr(instances, "image_size"), "Expect an `Instances` object, but it has no size"
    converted = Instances(instances.image_size)
    for name in instances._field_names:
        value = getattr(instances, "_" + name, None)
        if value is not None:
            converted.set(name, value)
    return converted


def assert_instances_allclose(
    input: Instances, other: Instances, *, rtol: float = 1e-5, msg: str = "", size_as_tensor=False
) -> None:
    """Fail unless two sets of instances have equal sizes, the same fields and close values.

    Args:
        input, other: what to compare.
        rtol: allowed deviation relative to the magnitude.
        msg: start of the message.
        size_as_tensor: the image sizes are tensors, as in traced models.
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
        if isinstance(value, torch.Tensor):
            close = len(value) == len(other_value) and (
                len(value) == 0 or (value - other_value).abs().max() <= value.abs().max() * rtol
                if value.is_floating_point()
                else bool((value == other_value).all())
            )
            assert close, f"{msg}'{name}' has different values:\n{value}\n{other_value}"
        else:
            raise ValueError(f"{msg}Cannot compare the field '{name}' of type {type(value)}")


def skipIfOnCPUCI(test):
    """Skip a test when there is no GPU; for tests that take too long on a CPU."""
    return unittest.skipIf(not torch.cuda.is_available(), "The test is too slow on CPUs.")(test)


def skipIfUnsupportedMinTorchVersion(min_version: str):
    """Skip a test on an older PyTorch."""
    reason = f"module 'torch' has version {torch.__version__}, the test needs {min_version}"
    return unittest.skipIf(not min_torch_version(min_version), reason)
