# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""TorchScript compilation of code that uses ``Instances``. Caffe2 and ONNX export are absent."""

from detectron2._lite import absent

from .torchscript import scripting_with_instances

__getattr__ = absent(__name__)
