# SPDX-License-Identifier: Apache-2.0
"""State of the process: random seeds, library settings, the user's own set-up module."""

import functools
import importlib
import importlib.util
import logging
import os
import random
import secrets
import sys
from contextlib import suppress

import numpy as np
import torch

__all__ = ["seed_all_rng"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""(major, minor) of the installed PyTorch."""

DOC_BUILDING = os.getenv("_DOC_BUILDING", "False").lower() in ("1", "true", "yes")
"""Set while documentation is generated."""


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators.

    Args:
        seed: the seed; None takes one from the system's source of randomness.
    """
    if seed is None:
        seed = secrets.randbits(31)
        logging.getLogger(__name__).info("Seeding with %d, which the system drew", seed)
    for seed_generator in (random.seed, np.random.seed, torch.manual_seed):
        seed_generator(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def _import_file(module_name: str, file_path: str, make_importable: bool = False):
    """Run a Python file as a module.

    Args:
        module_name: name to give it.
        file_path: the file.
        make_importable: also enter it into `sys.modules`.
    """
    source = importlib.util.spec_from_file_location(module_name, file_path)
    made = importlib.util.module_from_spec(source)
    source.loader.exec_module(made)
    if make_importable:
        sys.modules[module_name] = made
    return made


def _configure_libraries() -> None:
    """Keep OpenCV, where present, from opening the GPU through OpenCL in every worker."""
    if os.environ.get("D2_DISABLE_LIBRARY_CONFIG", "").lower() in ("1", "true", "yes"):
        return
    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    with suppress(ModuleNotFoundError, AttributeError):  # no OpenCV, or one without OpenCL
        import cv2

        cv2.ocl.setUseOpenCL(False)


@functools.cache
def setup_environment() -> None:
    """Configure libraries once a process, then run the module in $DETECTRON2_ENV_MODULE, if set.

    Called when `detectron2` is imported.
    """
    _configure_libraries()
    custom_module = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom_module:
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module: str) -> None:
    """Import a module by name, or a file ending in .py, and call its `setup_environment()`."""
    is_file = custom_module.endswith(".py")
    users = (
        _import_file(f"{__name__}.custom_module", custom_module)
        if is_file
        else importlib.import_module(custom_module)
    )
    assert callable(getattr(users, "setup_environment", None)), (
        f"{custom_module}, named in $DETECTRON2_ENV_MODULE, has no function setup_environment()"
    )
    users.setup_environment()


def fixup_module_metadata(module_name: str, namespace: dict, keys=None) -> None:
    """Let the members of a package name the package, not their file, as their module.

    Documentation only. It does nothing outside `DOC_BUILDING`.
    """
    if not DOC_BUILDING:
        return
    for name in namespace if keys is None else keys:
        member = namespace[name]
        if not name.startswith("_") and getattr(member, "__module__", "").startswith(module_name):
            member.__module__ = module_name
