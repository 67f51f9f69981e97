# SPDX-License-Identifier: Apache-2.0
"""Packaging of the person search core and its projects. Never imports torch."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# import name -> folder; one line per method
PROJECTS = {
    "diffps": "projects/DiffPS/diffps",
    "psdiff": "projects/PSDiff/psdiff",
    "twostage": "projects/TwoStage/twostage",
}

# import name = module:function that adds the config keys of the project; its import registers
# the model; train_net.py and tools/ find the projects by these lines
ENTRY_POINTS = {
    "console_scripts": [
        "person-search = person_search.search.cli:main",
        "person-search-tools = person_search.programs:main",
        "person-search-train = person_search.train:main",
    ],
    "person_search.projects": [
        "diffps = diffps:add_diffps_config",
        "psdiff = psdiff:add_psdiff_config",
        "twostage = twostage:add_twostage_config",
    ],
}

EXTRAS = {
    # The frozen Stable Diffusion backbone of DiffPS. PSDiff needs none of it.
    "diffps": ["transformers>=4.44,<6"],
    # The approximate index of large galleries; exact search needs no extra.
    "search": ["faiss-cpu>=1.9"],
    # Weights of the Hugging Face hub (hf://owner/name).
    "hub": ["huggingface_hub>=0.25"],
    # Galleries in Milvus, a vector database: the client, and the embedded engine.
    "milvus": ["pymilvus>=2.5", "milvus-lite>=2.4.10; sys_platform != 'win32'"],
    # Images at URLs in person-search: s3://, gs://, https://.
    "fsspec": ["fsspec[gs,http,s3]>=2024.6"],
    # HEIC images in person-search; AVIF needs Pillow 11.3 or later.
    "heif": ["pillow-heif>=0.16"],
    # Models of person-search export; onnxscript writes them.
    "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
    # Proposals of person-search label.
    "label": ["scikit-learn>=1.5"],
    # The web page of person-search serve.
    "page": ["fastapi>=0.115", "uvicorn>=0.30"],
    # Image models as backbones (MODEL.TIMM), of PSDiff's teachers and as re-ID network of TwoStage.
    "timm": ["timm>=1.0"],
    # OSNet in TwoStage (MODEL.TWO_STAGE.REID torchreid/<name>), with what it imports undeclared.
    "torchreid": ["torchreid>=0.2.5", "gdown>=5", "scipy", "tensorboard>=2.15"],
    # Experiment trackers, see TRACKING in person_search/config/defaults.py.
    "mlflow": ["mlflow-skinny>=2.11"],
    "wandb": ["wandb>=0.17"],
    # Event files beside the JSON and log output of every run.
    "tensorboard": ["tensorboard>=2.15"],
    # For everyone who runs the programs.
    "all": ["person-search[diffps,heif,hub,label,onnx,page,search,tensorboard,timm]"],
    # What an uncompiled source checkout of the real Detectron2 imports beyond our own needs.
    "real": [
        "black",
        "cloudpickle",
        "hydra-core>=1.1",
        "iopath>=0.1.7,<0.1.10",
        "omegaconf>=2.1,<2.4",
        "setuptools<81",  # its model_zoo imports pkg_resources, which later versions dropped
        "tensorboard>=2.15",
        "termcolor>=1.1",
        "yacs>=0.1.8",
    ],
    "dev": [
        "coverage>=7.10",  # from here on it follows child processes
        "faiss-cpu>=1.9",  # so that the approximate index is tested
        "fastapi>=0.115",  # so that the page is tested
        "hypothesis>=6.100",
        "mlflow-skinny>=2.11",  # so that the trackers are tested
        "milvus==2.3.5; sys_platform == 'linux' and platform_machine == 'x86_64'",  # a server
        "milvus-lite>=2.4.10; sys_platform != 'win32'",  # so that galleries in Milvus are tested
        "mypy==2.4.1",
        "onnx>=1.17",  # so that the export is tested
        "onnxruntime>=1.20",
        "onnxscript>=0.5",
        "playwright>=1.48",  # drives an installed Chromium
        "pre-commit>=3.5",
        "pymilvus>=2.5",
        "pytest>=9",  # faulthandler_exit_on_timeout
        "timm>=1.0",  # so that its backbones are tested
        "transformers>=4.44,<6",  # so that DiffPS is tested
        "uvicorn>=0.30",
        "wandb>=0.17",
        "pytest-cov>=6",
        "pytest-xdist>=3.5",
        "scikit-learn>=1.5",  # so that person-search label is tested
        "ruff==0.17.5",  # pinned here and nowhere else: every caller goes through dev/linter.sh
    ],
}


def list_packages() -> tuple[list[str], dict[str, str]]:
    """Returns all packages, and the folders of those outside the root."""
    packages = find_packages(include=["person_search", "person_search.*"])
    package_dir = {}
    for name, folder in PROJECTS.items():
        packages.append(name)
        packages.extend(f"{name}.{sub}" for sub in find_packages(folder))
        package_dir[name] = folder
    # in a checkout, person_search finds these folders beside the package
    for folder in ("configs", "tools"):
        packages.append(f"person_search.{folder}")
        package_dir[f"person_search.{folder}"] = folder
    return packages, package_dir


class BuildWithoutScripts(build_py):
    """Leaves out the tools that run scripts of the checkout."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Returns the modules of a package without these tools."""
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[1] not in ("demo", "reproduce")]


def read_version() -> str:
    """Returns the version that ``person_search/__init__.py`` states, without importing it."""
    text = (ROOT / "person_search" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


PACKAGES, PACKAGE_DIR = list_packages()

setup(
    name="person-search",
    version=read_version(),
    description="Person search on Detectron2: PSDiff and DiffPS with one data path and evaluator",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    package_data={
        "person_search": ["py.typed"],
        "person_search.configs": ["**/*.yaml"],
        "person_search.search.page": ["static/*"],
    },
    entry_points=ENTRY_POINTS,
    cmdclass={"build_py": BuildWithoutScripts},
    install_requires=[
        # detectron2 is not listed: pip cannot express "the real one or compat/detectron2-lite"
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=2.0",  # vecdot
        "opencv-python>=4.10",
        "fvcore>=0.1.5",
        "pycocotools>=2.0.8",
        "scipy>=1.13",
        "safetensors>=0.4.3",
        "Pillow>=10.3",
        "tqdm>=4.66",
        "rich>=13",
        "matplotlib>=3.9",
        "tabulate",
        "diffusers>=0.32,<1",  # psdiff uses its schedulers, diffps its models
    ],
    extras_require=EXTRAS,
)
