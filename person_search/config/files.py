# SPDX-License-Identifier: Apache-2.0
"""The configs that come with the project: where they are, and their names."""

import difflib
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
    names = list_configs()
    by_file = {Path(known).name: known for known in reversed(names)}
    near = [by_file[x] for x in difflib.get_close_matches(Path(name).name, by_file, n=2)]
    near = near or difflib.get_close_matches(name, names, n=2)
    return f" Did you mean {' or '.join(near)}?" if near else ""
