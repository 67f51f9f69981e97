# SPDX-License-Identifier: Apache-2.0
"""Configs and weights by name, in a checkout and in an installed wheel, as in Detectron2.

Example::

    from person_search import model_zoo

    cfg = model_zoo.get_config("PSDiff/psdiff_r50_fpn_prw.yaml")
    model = model_zoo.get("PSDiff/psdiff_r50_fpn_prw.yaml")

A name is a path below ``configs/``. Programs accept names for ``--config-file``, too.
"""

from detectron2.config import CfgNode
from torch import nn

from person_search.config import config_folder, list_configs, nearest_configs

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "list_configs"]

WEIGHT_URLS: dict[str, str] = {}
"""Config name -> URL of trained weights. No weights have been published yet."""


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

    from person_search.utils.weight_files import fetch_weights

    cfg = get_config(name, trained)
    cfg.MODEL.DEVICE = device or (cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu")
    model = build_model(cfg)
    if trained:
        DetectionCheckpointer(model).load(fetch_weights(cfg.MODEL.WEIGHTS))
    return model.eval()
