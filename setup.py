# SPDX-License-Identifier: Apache-2.0
"""Packaging of the person search core and its projects. Never imports torch."""

from setuptools import find_packages, setup

# import name -> folder; one line per method
PROJECTS = {
    "diffps": "projects/DiffPS/diffps",
    "psdiff": "projects/PSDiff/psdiff",
}


def list_packages() -> tuple[list[str], dict[str, str]]:
    """Returns all packages, and the folders of those that do not lie at the root."""
    packages = find_packages(include=["person_search", "person_search.*"])
    package_dir = {}
    for name, folder in PROJECTS.items():
        packages.append(name)
        packages.extend(f"{name}.{sub}" for sub in find_packages(folder))
        package_dir[name] = folder
    return packages, package_dir


PACKAGES, PACKAGE_DIR = list_packages()

setup(
    name="person-search",
    version="0.1.0",
    description="Person search on Detectron2: PSDiff and DiffPS with one data path and evaluator",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    install_requires=[
        # detectron2 itself is left out: pip cannot say "the real one or compat/detectron2-lite"
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=1.26",
        "opencv-python>=4.8",
        "fvcore>=0.1.5",
        "pycocotools>=2.0.7",
        "scipy>=1.11",
        "safetensors>=0.4",
        "Pillow>=10",
        "tqdm>=4.66",
        "rich>=13",
        "matplotlib>=3.8",
        "tabulate",
    ],
)
