# SPDX-License-Identifier: Apache-2.0
"""From a YAML file and overrides to a config, with errors that name the place and the key."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from person_search.config.defaults import add_person_search_config
from person_search.config.projects import add_all_project_configs


def default_config() -> CfgNode:
    """Returns Detectron2's defaults with the keys of the core and of all installed projects."""
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_all_project_configs(cfg)
    return cfg


def build_config(config_file: str | os.PathLike, opts: Sequence[str] = ()) -> CfgNode:
    """Returns the frozen config of a YAML file and KEY VALUE overrides.

    Raises:
        FileNotFoundError, ValueError: see :func:`merge_into`, :func:`check_model` and
            :func:`check_device`.
        ProjectError: no project is installed.
    """
    cfg = default_config()
    merge_into(cfg, config_file, opts)
    check_model(cfg)
    check_device(cfg)
    cfg.freeze()
    return cfg


def merge_into(cfg: CfgNode, config_file: str | os.PathLike, opts: Sequence[str] = ()) -> None:
    """Merges a YAML file (may be empty: none) and then KEY VALUE overrides, in place.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key that does not exist (with the nearest one that does), a value of the wrong
            type, broken YAML, or overrides that are no pairs.
    """
    config_file = os.fspath(config_file)
    if config_file:
        if "://" not in config_file and not os.path.isfile(config_file):
            raise FileNotFoundError(f"--config-file {config_file!r} does not exist.")
        with _explained(cfg, config_file):
            cfg.merge_from_file(config_file)
    _check_pairs(opts)
    with _explained(cfg, "the command line"):
        cfg.merge_from_list(list(opts))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean …?" with the nearest known name, or "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def check_model(cfg: CfgNode) -> None:
    """Raises ValueError, with the nearest name, if ``MODEL.META_ARCHITECTURE`` is no model."""
    name, known = cfg.MODEL.META_ARCHITECTURE, sorted(key for key, _ in META_ARCH_REGISTRY)
    if name not in known:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {name!r}, and no model has that name."
            f"{did_you_mean(name, known)} There are {', '.join(known)}."
        )


def check_device(cfg: CfgNode, remedy: str = "MODEL.DEVICE cpu") -> None:
    """Raises ValueError, with the remedy, if ``MODEL.DEVICE`` is a GPU that is not there."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but no CUDA device is available. "
            f"Add {remedy} to run on the CPU."
        )


@contextmanager
def _explained(cfg: CfgNode, source: str) -> Iterator[None]:
    """Turns what reading a config raises into a ValueError that names the place."""
    try:
        yield
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as e:
        # str(KeyError) is the repr of its argument
        text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
        text = text.strip().rstrip(".") or type(e).__name__
        key = text.rpartition(" ")[2]
        hint = did_you_mean(key, _keys(cfg)) if "Non-existent" in text else _example(text)
        raise ValueError(f"{source}: {text}.{hint}") from e


def _check_pairs(opts: Sequence[str]) -> None:
    """Says what is wrong with overrides that are no pairs before they are taken for keys."""
    options = [opt for opt in opts if str(opt).startswith("--")]
    if options:
        raise ValueError(
            f"the command line: {options[0]} stands behind a KEY VALUE pair and is taken for a "
            "part of one. Options come first, all KEY VALUE pairs after them."
        )
    if len(opts) % 2:
        raise ValueError(
            f"the command line: the override list {' '.join(map(str, opts))!r} has an odd length; "
            "overrides come as KEY VALUE pairs, and a value with spaces in quotes."
        )


def _example(text: str) -> str:
    """How to write a tuple or a list where a single value was given; "" for other errors."""
    found = re.search(
        r"\(<class '(tuple|list)'> vs\. <class '(\w+)'>\) with values \(.* vs\. (.*)\) "
        r"for config key: (\S+)$",
        text,
    )
    if not found:
        return ""
    kind, given, value, key = found.groups()
    words = re.findall(r"[\w./+-]+", value) if given == "str" else [value]
    items = ", ".join(repr(word) if given == "str" else word for word in words)
    example = f"[{items}]" if kind == "list" else f"({items}{',' * (len(words) == 1)})"
    return f' Write it so: {key} "{example}".'


def _keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _keys(value, f"{prefix}{key}.")
    return keys
