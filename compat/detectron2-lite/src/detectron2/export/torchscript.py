# SPDX-License-Identifier: Apache-2.0
"""Export of models to TorchScript."""

import torch
from torch import nn

from .torchscript_patch import freeze_training_mode, patch_instances


def scripting_with_instances(model: nn.Module, fields: dict[str, type]) -> torch.jit.ScriptModule:
    """Compiles a model that uses ``Instances``.

    Args:
        model: Model in eval mode.
        fields: Type of every field of ``Instances`` that the model uses, by name.

    Returns:
        The compiled model. Instead of ``Instances``, it uses the class made by ``patch_instances``.
    """
    assert not model.training, "Currently we only support exporting models in evaluation mode"
    with freeze_training_mode(model), patch_instances(fields):
        return torch.jit.script(model)
