# SPDX-License-Identifier: Apache-2.0
"""Random seeds, library settings, and the custom setup module."""

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


def seed_all_rng(seed: int | None = None) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch.

    Args:
        seed: Seed; by default a random one from the operating system.
    """
    if seed is None:
        seed = secrets.randbits(31)
        logging.getLogger(__name__).info("Using the random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def _import_file(module_name: str, file_path: str, make_importable: bool = False):
    """Imports a Python file under a module name; optionally adds it to ``sys.modules``."""
    source = importlib.util.spec_from_file_location(module_name, file_path)
    made = importlib.util.module_from_spec(source)
    source.loader.exec_module(made)
    if make_importable:
        sys.modules[module_name] = made
    return made


@functools.cache
def setup_environment() -> None:
    """Configures libraries and runs the module in $DETECTRON2_ENV_MODULE, once per process.

    It is called when ``detectron2`` is imported.
    """
    if os.environ.get("D2_DISABLE_LIBRARY_CONFIG", "").lower() not in ("1", "true", "yes"):
        # OpenCV would use the GPU through OpenCL in every loader process
        os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
        with suppress(ModuleNotFoundError, AttributeError):  # no OpenCV, or without OpenCL
            import cv2

            cv2.ocl.setUseOpenCL(False)
    custom_module = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom_module:
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module: str) -> None:
    """Imports a module by name, or a .py file, and calls its ``setup_environment()``."""
    if custom_module.endswith(".py"):
        module = _import_file(f"{__name__}.custom_module", custom_module)
    else:
        module = importlib.import_module(custom_module)
    assert callable(getattr(module, "setup_environment", None)), (
        f"$DETECTRON2_ENV_MODULE: {custom_module} must define the function setup_environment()"
    )
    module.setup_environment()
