# SPDX-License-Identifier: Apache-2.0
"""Configs and weights by name, in a checkout and in an installed wheel, as in Detectron2.

Example::

    from person_search import model_zoo

    cfg = model_zoo.get_config("PSDiff/psdiff_r50_fpn_prw.yaml")
    model = model_zoo.get("PSDiff/psdiff_r50_fpn_prw.yaml")

A name is a path below ``configs/``. Programs accept names for ``--config-file``, too.
"""

import difflib
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

WEIGHT_URLS: dict[str, str] = {}
"""Config name -> URL of trained weights. No weights have been published yet."""


def config_folder() -> Path:
    """Returns the folder of all configs: inside the package in a wheel, else of the checkout.

    Raises:
        FileNotFoundError: The installation contains no configs.
    """
    package = Path(__file__).resolve().parent
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


def get_config_file(name: str) -> str:
    """Returns the path of a config.

    Args:
        name: Path below ``configs/``, for example ``PSDiff/psdiff_r50_fpn_prw.yaml``.

    Raises:
        FileNotFoundError: There is no such config; the message lists the nearest names.
    """
    path = config_folder() / name
    if path.is_file():
        return str(path)
    raise FileNotFoundError(f"{name!r} is not in the model zoo.{nearest_configs(name)}")


def nearest_configs(name: str) -> str:
    """Returns a sentence with the names of similar configs, or "" if none is similar."""
    by_file = {Path(known).name: known for known in reversed(list_configs())}
    names = list_configs()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    near += [by_file[x] for x in difflib.get_close_matches(Path(name).name, by_file, n=2)]
    near = list(dict.fromkeys(near))[:3]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def get_checkpoint_url(name: str) -> str:
    """Returns the URL of the trained weights of a config.

    Raises:
        FileNotFoundError: There is no such config.
        RuntimeError: No weights of it have been published.
    """
    get_config_file(name)
    if name not in WEIGHT_URLS:
        published = ", ".join(sorted(WEIGHT_URLS)) or "none yet"
        raise RuntimeError(
            f"no trained weights of {name} have been published (published: {published}). Train it "
            f"with train_net.py --config-file {name}, or set MODEL.WEIGHTS to weights of your own."
        )
    return WEIGHT_URLS[name]


def get_config(name: str, trained: bool = False) -> CfgNode:
    """Returns a config, not frozen, with the keys of all installed projects.

    Args:
        name: See :func:`get_config_file`.
        trained: Sets ``MODEL.WEIGHTS`` to the published weights. Otherwise it is the value of the
            config, which are the weights that a training starts from.

    Raises:
        FileNotFoundError: There is no such config.
        RuntimeError: ``trained`` is set and no weights have been published.
    """
    from person_search.config import default_config, merge_into

    cfg = default_config()
    merge_into(cfg, get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Returns the model of a config in eval mode.

    Args:
        name: See :func:`get_config_file`.
        trained: Loads the published weights; otherwise the weights are random.
        device: Device of the model. Default: that of the config, or the CPU without CUDA.

    Raises:
        FileNotFoundError: There is no such config.
        RuntimeError: ``trained`` is set and no weights have been published.
    """
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    cfg = get_config(name, trained)
    cfg.MODEL.DEVICE = device or (cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu")
    model = build_model(cfg)
    if trained:
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()
