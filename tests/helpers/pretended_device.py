# SPDX-License-Identifier: Apache-2.0
"""An accelerator that does not exist: finds tensors on the wrong device, and counts waits for it.

Tensors are computed on the CPU. Those derived from the weights of a model carry a label, and an
operation on tensors with and without it fails as it would on a GPU.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

DEVICE = torch.device("cpu", 1)  # of type "cpu", for autocast
_CPU = torch.device("cpu")
_WAITING = {
    *("item", "tolist", "nonzero", "masked_select", "unique", "equal", "allclose", "nms"),
    *("__bool__", "__int__", "__float__", "__index__", "argwhere", "is_nonzero"),
}
_MAY_MIX = {"copy_", "__getitem__", "__setitem__", "index_put_", "to"}


class PretendedDevice(TorchFunctionMode):
    """Active in a ``with`` block.

    Args:
        *modules: Modules whose weights are on the device.

    Attributes:
        waits: How often the host waited for the device, by name of the function.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                _label(tensor, True)

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        name = getattr(func, "__name__", str(func)).split(".")[-1]
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE if is_labelled(args[0]) else _CPU
        leaves, spec = tree_flatten((args, kwargs or {}))
        asked = DEVICE in [x for x in leaves if isinstance(x, torch.device)]
        to_cpu = "cpu" in [str(x) for x in leaves if isinstance(x, str | torch.device)]
        leaves = [_CPU if isinstance(x, torch.device) else x for x in leaves]
        args, kwargs = tree_unflatten(leaves, spec)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        labelled = [is_labelled(x) for x in tensors]
        result = func(*args, **kwargs)
        if name in ("to", "cpu", "numpy") and tensors:
            source = labelled[0]
            target = asked
            if name == "to" and not (asked or to_cpu):
                target = labelled[-1]  # of the other tensor, or unchanged
            if source and not target:
                self.waits[name] += 1
            if name == "numpy":
                assert not source, "numpy() of a tensor on the device"
                return result
            result = result.clone() if result is args[0] and source != target else result
            _label(result, target)
            return result
        sized = {flag for x, flag in zip(tensors, labelled, strict=True) if x.dim()}
        if len(sized) == 2 and name not in _MAY_MIX:
            shapes = [(tuple(x.shape), f) for x, f in zip(tensors, labelled, strict=True)]
            raise RuntimeError(f"{name}: tensors on two devices, (shape, on the device): {shapes}")
        masked = name == "__getitem__" and any(x.dtype == torch.bool for x in tensors[1:])
        if any(labelled) and (name in _WAITING or masked or (name == "where" and len(leaves) == 1)):
            self.waits[name] += 1
        for x in tree_flatten(result)[0]:
            if isinstance(x, Tensor):
                on = labelled[0] if name in _MAY_MIX and tensors else any(labelled)
                explicit = "device" in kwargs and kwargs["device"] is not None
                _label(x, asked if explicit else asked or on)
        return result


def is_labelled(tensor: Tensor) -> bool:
    """Returns whether a tensor is on the device."""
    return getattr(tensor, "_on_pretended_device", False)


def _label(tensor: Tensor, on: bool) -> None:
    tensor._on_pretended_device = on  # type: ignore[attr-defined]
