# SPDX-License-Identifier: Apache-2.0
"""Registries of classes by name, and the way from an object to its import path and back."""

import importlib
import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def _resolve(path: str) -> Any | None:
    """The object that the dotted `path` names, or None."""
    first, *rest = path.split(".")
    try:
        found, module_name = importlib.import_module(first), first
        for part in rest:
            module_name = f"{module_name}.{part}"
            # A submodule need not be an attribute of its package: torch.optim deletes its own.
            found = (
                getattr(found, part)
                if hasattr(found, part)
                else importlib.import_module(module_name)
            )
    except (ImportError, AttributeError, ValueError):
        return None
    return found


def _convert_target_to_string(target: Any) -> str:
    """The shortest import path of a class or function that leads back to the same object.

    `pkg.impl.Thing` becomes `pkg.Thing` when `pkg` exports it: such names survive a reshuffle
    of the implementation files.
    """
    module, qualname = target.__module__, target.__qualname__
    parts = module.split(".")
    for length in range(1, len(parts)):
        shorter = ".".join([*parts[:length], qualname])
        if _resolve(shorter) is target:
            return shorter
    return f"{module}.{qualname}"


def locate(name: str) -> Any:
    """The object with the dotted path `name`.

    Raises:
        ImportError: nothing importable has this name.
    """
    found = pydoc.locate(name)
    if found is None:
        # pydoc gives up on names such as torch.optim.sgd.SGD.
        found = _resolve(name)
    if found is None:
        raise ImportError(f"Cannot locate the object '{name}': no such module or attribute")
    return found
