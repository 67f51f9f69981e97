# SPDX-License-Identifier: Apache-2.0
"""TorchScript compilation of code that uses ``Instances``. Caffe2 and ONNX export are absent."""

from detectron2._lite import absent

from .torchscript import dump_torchscript_IR, scripting_with_instances

__all__ = ["dump_torchscript_IR", "scripting_with_instances"]

__getattr__ = absent(
    __name__,
    "STABLE_ONNX_OPSET_VERSION",
    "Caffe2Model",
    "Caffe2Tracer",
    "ONNXModel",
    "TracingAdapter",
    "add_export_config",
)
