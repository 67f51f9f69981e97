# SPDX-License-Identifier: Apache-2.0
"""Export of models to TorchScript."""

import os

import torch
from detectron2.utils.file_io import PathManager
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


def dump_torchscript_IR(model, dir: str) -> None:
    """Writes the code and the graph of a compiled or traced model to files in ``dir``."""
    dir = os.path.expanduser(dir)
    PathManager.mkdirs(dir)
    texts = {
        "model_ts_code.txt": lambda: model.code,
        "model_ts_IR.txt": lambda: str(model.graph),
        "model_ts_IR_inlined.txt": lambda: str(model.inlined_graph),
        "model.txt": lambda: str(model),
    }
    for name, text in texts.items():
        with PathManager.open(os.path.join(dir, name), "w") as f:
            try:
                f.write(text())
            except AttributeError as e:  # a compiled function does not have every attribute
                f.write(f"not available: {e}\n")
