# SPDX-License-Identifier: Apache-2.0
"""The configs that come with the project: where they are, and their names."""

import difflib
import importlib.util
import os
from pathlib import Path


def config_folder() -> Path:
    """Returns the folder of all configs: inside the package in a wheel, else of the checkout.

    Raises:
        FileNotFoundError: The installation contains no configs.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "Base-PersonSearch.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"there are no configs in {package} or beside it; install person-search again."
    )


def list_configs() -> list[str]:
    """Returns the names of all configs, sorted."""
    folder = config_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def nearest_configs(name: str) -> str:
    """Returns a sentence with the names of similar configs, or "" if none is similar."""
    # of several files with the same name, that in the most similar folder
    by_stem = {
        Path(known).stem: known
        for known in sorted(
            list_configs(), key=lambda known: difflib.SequenceMatcher(None, name, known).ratio()
        )
    }
    near = difflib.get_close_matches(Path(name).stem, by_stem, n=2, cutoff=0.7)
    near = [by_stem[stem] for stem in near]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def find_config(name: str) -> str:
    """Returns the path of a config file.

    Args:
        name: Path or URL of a YAML file, or the name of one below ``configs/``.

    Raises:
        FileNotFoundError: There is no such file; the message lists the nearest names.
    """
    if "://" in name or os.path.isfile(name):
        return name
    if name.removeprefix("configs/") in list_configs():  # a path in a checkout, or a name
        return str(config_folder() / name.removeprefix("configs/"))
    kind = "is a folder" if os.path.isdir(name) else "does not exist"
    raise FileNotFoundError(f"--config-file {name!r} {kind}.{nearest_configs(name)}")


def find_weights(name: str) -> str:
    """Returns the path of weights that come with the project; other names as they are.

    Args:
        name: Value of MODEL.WEIGHTS. A path of the repository, such as
            ``projects/PSDiff/weights/psdiff_slim_synthetic.safetensors``, is also found from other
            folders, and in the wheel person-search-demo-weights.
    """
    if not name.startswith("projects/") or os.path.exists(name):
        return name
    found = [Path(__file__).resolve().parents[2] / name]
    if demo := importlib.util.find_spec("person_search_demo_weights"):
        found += [Path(folder, Path(name).name) for folder in demo.submodule_search_locations or ()]
    return next((str(path) for path in found if path.is_file()), name)
