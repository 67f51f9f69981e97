# SPDX-License-Identifier: Apache-2.0
"""Registries, and conversion between objects and their import paths."""

import importlib
import pydoc
from typing import Any

from fvcore.common.registry import Registry  # noqa: F401


def _resolve(path: str) -> Any | None:
    """Returns the object with the dotted ``path``, or None."""
    first, *rest = path.split(".")
    try:
        found, module_name = importlib.import_module(first), first
        for part in rest:
            module_name = f"{module_name}.{part}"
            # A submodule may be missing among the attributes of its package, as in torch.optim.
            found = (
                getattr(found, part)
                if hasattr(found, part)
                else importlib.import_module(module_name)
            )
    except (ImportError, AttributeError, ValueError):
        return None
    return found


def _convert_target_to_string(target: Any) -> str:
    """Returns the shortest import path of a class or function.

    ``pkg.impl.Thing`` becomes ``pkg.Thing`` if ``pkg`` exports it.
    """
    module, qualname = target.__module__, target.__qualname__
    parts = module.split(".")
    for length in range(1, len(parts)):
        shorter = ".".join([*parts[:length], qualname])
        if _resolve(shorter) is target:
            return shorter
    return f"{module}.{qualname}"


def locate(name: str) -> Any:
    """Returns the object with the dotted path ``name``.

    Raises:
        ImportError: The object does not exist.
    """
    found = pydoc.locate(name)
    if found is None:
        # pydoc does not find names such as torch.optim.sgd.SGD
        found = _resolve(name)
    if found is None:
        raise ImportError(f"{name} is not an importable module, class or function")
    return found
