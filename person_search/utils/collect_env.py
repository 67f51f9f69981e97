# SPDX-License-Identifier: Apache-2.0
"""Prints what is installed, and what is missing for which feature.

Attach the output of ``python -m person_search.utils.collect_env`` to a bug report. It requires only
the standard library, so that it also describes a broken installation.
"""

import argparse
import functools
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from person_search import __version__
from person_search.utils.backend import BackendError, backend_location, check_backend

REQUIRED = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "fvcore",
    "iopath",
    "pycocotools",
    "cv2",
    "PIL",
    "diffusers",
    "safetensors",
)
"""Import names of the required packages."""


@dataclass(frozen=True)
class Feature:
    """A feature that requires further packages.

    Attributes:
        name: Name of the feature for users.
        modules: Import names of the packages.
        remedy: Command that installs them.
    """

    name: str
    modules: tuple[str, ...]
    remedy: str


FEATURES = (
    Feature(
        "libraries of DiffPS", ("transformers", "tokenizers"), "pip install person-search[diffps]"
    ),
    Feature("page for the browser", ("fastapi", "uvicorn"), "pip install person-search[page]"),
    Feature("approximate search", ("faiss",), "pip install person-search[search]"),
    Feature("TensorBoard event files", ("tensorboard",), "pip install person-search[tensorboard]"),
    Feature("tests and lint", ("pytest", "hypothesis", "ruff"), "pip install person-search[dev]"),
)

DATASETS = {
    "CUHK-SYSU": ("CUHK-SYSU", "cuhk_sysu"),
    "PRW": ("PRW", "PRW-v16.04.20"),
    "synthetic CUHK-SYSU": ("synthetic/CUHK-SYSU",),
    "synthetic PRW": ("synthetic/PRW",),
}
"""Data set -> possible folders below ``$DETECTRON2_DATASETS``."""


# of the whole process: reading the file lists of all packages takes 0.1 s and more
_distributions_of = functools.cache(metadata.packages_distributions)


def module_version(module: str) -> str | None:
    """Returns the version of an installed module, "?" if unknown, None if not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    for distribution in _distributions_of().get(module, [module]):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "?"


def describe_system() -> list[tuple[str, str]]:
    """Returns rows (name, value) on interpreter, project, backend, packages and devices."""
    rows = [
        ("platform", platform.platform()),
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("person-search", __version__),
        ("detectron2 backend", _describe_backend()),
    ]
    rows += [(module, module_version(module) or "MISSING") for module in REQUIRED]
    return rows + _describe_devices()


def describe_features() -> list[tuple[str, str]]:
    """Returns rows (feature, "ready" with versions or what is missing with the remedy)."""
    rows = []
    for feature in FEATURES:
        missing = [m for m in feature.modules if importlib.util.find_spec(m) is None]
        state = f"missing {', '.join(missing)}: {feature.remedy}"
        if not missing:
            versions = ", ".join(f"{m} {module_version(m)}" for m in feature.modules)
            state = f"ready ({versions})"
        rows.append((feature.name, state))
    return rows


def describe_datasets() -> list[tuple[str, str]]:
    """Returns rows (data set, folder found or "not found"), for ``$DETECTRON2_DATASETS``.

    Only the existence of the folder is checked; ``tools/check_dataset.py`` checks the content.
    """
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    rows = [("DETECTRON2_DATASETS", os.environ.get("DETECTRON2_DATASETS", "not set: datasets/"))]
    for name, folders in DATASETS.items():
        found = [root / folder for folder in folders if (root / folder).is_dir()]
        looked = " or ".join(str(root / folder) for folder in folders)
        rows.append((name, str(found[0]) if found else f"not found ({looked})"))
    return rows


def collect_env() -> str:
    """Returns the whole report as text."""
    sections = {
        "system": describe_system(),
        "features": describe_features(),
        "data sets": describe_datasets(),
    }
    width = max(len(key) for rows in sections.values() for key, _ in rows)
    lines = []
    for title, rows in sections.items():
        lines.append(f"--- {title} ---")
        lines += [f"{key.ljust(width)}  {value}" for key, value in rows]
    return "\n".join(lines)


def _describe_backend() -> str:
    try:
        return f"{check_backend()} ({backend_location()})"
    except BackendError as e:
        return f"PROBLEM: {e}"


def _describe_devices() -> list[tuple[str, str]]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch  # here, so that the report also works without it

    rows = [
        ("CPU cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()}"),
        ("CUDA of torch", torch.version.cuda or "none (CPU build)"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        rows.append((f"GPU {index}", f"{properties.name}, {memory}"))
    if torch.cuda.device_count() == 0:
        rows.append(("GPU", "none found; set MODEL.DEVICE cpu"))
    return rows


if __name__ == "__main__":
    argparse.ArgumentParser("python -m person_search.utils.collect_env", None, __doc__).parse_args()
    print(collect_env())
