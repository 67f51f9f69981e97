# SPDX-License-Identifier: Apache-2.0
"""Environment report with versions and devices: ``python -m detectron2.utils.collect_env``."""

import importlib
import os
import platform
import sys

import detectron2
import torch
from tabulate import tabulate


def _folder(module) -> str:
    return os.path.dirname(os.path.realpath(module.__file__))


def _gpu_rows() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU available", "No: torch.cuda.is_available() is False")]
    names: dict[str, list[str]] = {}
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)} (arch={major}.{minor})"
        names.setdefault(name, []).append(str(index))
    rows = [("GPU available", "Yes")]
    rows += [("GPU " + ",".join(indices), name) for name, indices in names.items()]
    return rows


def _library_rows() -> list[tuple[str, str]]:
    rows = []
    for label, name in (
        ("Pillow", "PIL"),
        ("torchvision", "torchvision"),
        ("fvcore", "fvcore"),
        ("iopath", "iopath"),
        ("pycocotools", "pycocotools"),
        ("cv2", "cv2"),
    ):
        try:
            module = importlib.import_module(name)
        except ImportError:
            rows.append((label, "Not found"))
            continue
        rows.append((label, getattr(module, "__version__", "installed")))
    return rows


def collect_env_info() -> str:
    """Returns a table of versions and devices."""
    lite = getattr(detectron2, "__lite__", "unknown version")
    rows = [
        ("sys.platform", sys.platform),
        ("Python", sys.version.replace("\n", "")),
        ("machine", platform.machine()),
        ("numpy", importlib.import_module("numpy").__version__),
        (
            "detectron2",
            f"detectron2-lite {lite} (API of {detectron2.__version__}; not Detectron2) "
            f"@{_folder(detectron2)}",
        ),
        ("DETECTRON2_ENV_MODULE", os.environ.get("DETECTRON2_ENV_MODULE", "<not set>")),
        ("PyTorch", f"{torch.__version__} @{_folder(torch)}"),
        ("PyTorch debug build", str(torch.version.debug)),
        *_gpu_rows(),
        *_library_rows(),
    ]
    return f"{tabulate(rows)}\n{torch.__config__.show()}"


if __name__ == "__main__":
    print(collect_env_info())
