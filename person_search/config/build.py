# SPDX-License-Identifier: Apache-2.0
"""Builds a config from a YAML file and overrides; errors name their source and the key."""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from person_search.config.defaults import add_person_search_config
from person_search.config.files import find_config, find_weights
from person_search.config.projects import add_all_project_configs


def default_config() -> CfgNode:
    """Returns Detectron2's defaults with the keys of the core and of all installed projects."""
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_all_project_configs(cfg)
    return cfg


def build_config(config_file: str | os.PathLike, opts: Sequence[str] = ()) -> CfgNode:
    """Returns the frozen config of a YAML file and KEY VALUE overrides.

    Args:
        config_file: YAML file.
        opts: Overrides, alternating keys and values.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: See :func:`merge_into`, :func:`check_model` and :func:`check_device`.
        ProjectError: If no project is installed.
    """
    cfg = default_config()
    merge_into(cfg, config_file, opts)
    check_model(cfg)
    check_device(cfg)
    cfg.freeze()
    return cfg


def merge_into(cfg: CfgNode, config_file: str | os.PathLike, opts: Sequence[str] = ()) -> None:
    """Merges a YAML file and then KEY VALUE overrides into a config, in place.

    Args:
        cfg: Config to change.
        config_file: YAML file, or the name of one below ``configs/``; "" for none.
        opts: Overrides, alternating keys and values.

    Raises:
        FileNotFoundError: If the file does not exist. The message has the nearest existing one.
        ValueError: If a key does not exist (with the nearest key), a value has the wrong type, the
            YAML is broken, or the overrides are not pairs.
    """
    config_file = os.fspath(config_file)
    if config_file:
        config_file = find_config(config_file)
        with _explained(cfg, config_file):
            _check_yaml(config_file)
            cfg.merge_from_file(config_file)
    options = [opt for opt in opts if str(opt).startswith("--")]
    if options:
        raise ValueError(
            f"the command line: {options[0]} follows a KEY VALUE pair and is taken for a part of "
            "one. Options come first, all KEY VALUE pairs after them."
        )
    if len(opts) % 2:
        raise ValueError(
            f"the command line: the override list {' '.join(map(str, opts))!r} has an odd length; "
            "overrides come as KEY VALUE pairs, and a value with spaces needs quotes."
        )
    with _explained(cfg, "the command line"):
        cfg.merge_from_list(list(opts))
    cfg.MODEL.WEIGHTS = find_weights(cfg.MODEL.WEIGHTS)


def merge_run_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Merges the config of a training or evaluation, and adapts it to the machine.

    Args:
        cfg: Config to change.
        args: Command line of ``train_net.py``: ``config_file``, ``opts``, ``eval_only`` and
            ``num_gpus``. A value of 0 sets MODEL.DEVICE to "cpu".

    Raises:
        FileNotFoundError: See :func:`merge_into`.
        ValueError: See :func:`merge_into`. Also if the model is unknown, no data set is named, or
            the device is not available.
    """
    if args.config_file:
        args.config_file = find_config(args.config_file)  # Detectron2's default_setup reads it, too
    merge_into(cfg, args.config_file, args.opts)
    check_model(cfg)
    split = "TEST" if args.eval_only else "TRAIN"
    if not cfg.DATASETS[split]:
        raise ValueError(
            f"DATASETS.{split} is empty: name a data set in the config, or on the command line, "
            f"e.g. DATASETS.{split} \"('prw_{split.lower()}',)\"."
        )
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    check_device(cfg, remedy="--num-gpus 0 (or MODEL.DEVICE cpu)")


def did_you_mean(
    name: str, known: Iterable[str], key: Callable[[str], str] = lambda name: name
) -> str:
    """Returns " Did you mean …?" with the nearest known name, or "" if none is similar.

    Args:
        name: Misspelt name.
        known: Names to choose from.
        key: Function of a name that returns the part to compare.
    """
    by_key = {key(other): other for other in known}
    near = difflib.get_close_matches(key(name), list(by_key), n=1)
    return f" Did you mean {by_key[near[0]]}?" if near else ""


def check_model(cfg: CfgNode) -> None:
    """Raises ValueError, with the nearest name, if ``MODEL.META_ARCHITECTURE`` is unknown."""
    name, known = cfg.MODEL.META_ARCHITECTURE, sorted(key for key, _ in META_ARCH_REGISTRY)
    if name not in known:
        raise ValueError(
            f"unknown MODEL.META_ARCHITECTURE {name!r}.{did_you_mean(name, known)} "
            f"Available: {', '.join(known)}."
        )


def check_device(cfg: CfgNode, remedy: str = "MODEL.DEVICE cpu") -> None:
    """Checks that the device of a config is available.

    Args:
        cfg: Config with MODEL.DEVICE.
        remedy: Option or override that selects the CPU.

    Raises:
        ValueError: If ``MODEL.DEVICE`` is a GPU and there is none.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but no CUDA device is available. "
            f"Add {remedy} to run on the CPU."
        )


@contextmanager
def _explained(cfg: CfgNode, source: str) -> Iterator[None]:
    """Turns errors of reading a config into a ValueError that names the source."""
    try:
        yield
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as e:
        # str(KeyError) is the repr of its argument
        text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
        text = text.strip().rstrip(".") or type(e).__name__
        key = text.rpartition(" ")[2]
        hint = did_you_mean(key, _keys(cfg)) if "Non-existent" in text else _example(text)
        raise ValueError(f"{source}: {text}.{hint}") from e


def _check_yaml(path: str, below: tuple[str, ...] = ()) -> None:
    """Checks a YAML file and its bases for what reading accepts silently or without a message."""
    if "://" in path:
        return
    if os.path.abspath(path) in below:
        raise ValueError(f"{path} is its own _BASE_, directly or through another file")
    if not os.path.isfile(path):
        raise ValueError(f"_BASE_ names {path}, which does not exist")
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text ({e}); save it as UTF-8") from e
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(
            f"{path} is not a YAML mapping of config keys; it is empty or a list or text"
        )
    nodes = [root]
    while nodes:
        seen: dict[str, int] = {}
        for key, value in nodes.pop().value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ValueError(
                    f"{path} has the key {key.value} twice in one section, in line "
                    f"{seen[key.value]} and {line}, of which the first would have no effect"
                )
            seen[key.value] = line
            if isinstance(value, yaml.MappingNode):
                nodes.append(value)
    for key, value in root.value:
        if key.value == "_BASE_":
            for base in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                base = os.path.join(os.path.dirname(path), os.path.expanduser(base.value))
                _check_yaml(base, (*below, os.path.abspath(path)))
        elif key.value == "VERSION":
            if not isinstance(value, yaml.ScalarNode) or not value.value.isdecimal():
                raise ValueError(f"{path} has a VERSION that is not a whole number.")
            if int(value.value) > (known := get_cfg().VERSION):
                raise ValueError(
                    f"{path} has VERSION {value.value}, but this installation reads up to {known}; "
                    "install a newer person-search, or set the keys by those of this version"
                )


def _example(text: str) -> str:
    """Returns how to write a tuple or list in place of a single value; "" for other errors."""
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
    return f' Write {key} "{example}".'


def _keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _keys(value, f"{prefix}{key}.")
    return keys
