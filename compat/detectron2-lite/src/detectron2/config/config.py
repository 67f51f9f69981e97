# SPDX-License-Identifier: Apache-2.0
"""``CfgNode``, the process-wide config, and ``@configurable``."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from detectron2.utils.file_io import PathManager
from fvcore.common.config import CfgNode as _CfgNode


class CfgNode(_CfgNode):
    """fvcore's config node, with files opened by ``PathManager`` and old versions upgraded."""

    @classmethod
    def _open_cfg(cls, filename: str):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merges a YAML file, and the files it names under ``_BASE_``, into this config.

        A file written for an older version of the keys is merged under their old names and the
        result upgraded; without a VERSION key the version is guessed from the keys.

        Args:
            cfg_filename: path or URL of the YAML file.
            allow_unsafe: retry with the YAML loader that can build Python objects, if the safe
                one refuses the file.
        """
        from .compat import downgrade_config, guess_version, upgrade_config

        if not PathManager.isfile(cfg_filename):
            # An AssertionError, as callers of Detectron2 expect here.
            raise AssertionError(f"there is no config file '{cfg_filename}'")
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        if "VERSION" not in loaded:
            loaded.VERSION = guess_version(loaded, cfg_filename)
        if loaded.VERSION > self.VERSION:
            raise AssertionError(
                f"{cfg_filename} has VERSION {loaded.VERSION}, but this config only knows versions "
                f"up to {self.VERSION}; use a newer Detectron2 for it"
            )
        if loaded.VERSION == self.VERSION:
            self.merge_from_other_cfg(loaded)
            return

        logging.getLogger(__name__).warning(
            "%s has VERSION %d; its keys are renamed to those of VERSION %d. "
            "Save the file with the new names to be rid of this message.",
            cfg_filename,
            loaded.VERSION,
            self.VERSION,
        )
        old_style = downgrade_config(self, to_version=loaded.VERSION)
        old_style.merge_from_other_cfg(loaded)
        upgraded = upgrade_config(old_style)
        self.clear()
        self.update(upgraded)


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """Returns a fresh copy of the default config."""
    from .defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Makes ``global_cfg`` hold the same keys as ``cfg``, for code that no cfg is passed to."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None):
    """Lets a class or a function be called either with its own arguments or with a config.

    On ``__init__``, as ``@configurable``: the class must have a classmethod
    ``from_config(cls, cfg, ...)`` that returns a dict of arguments for ``__init__``. On a
    function, as ``@configurable(from_config=...)``, the converter is given instead.

    The config is recognized by its type, as the first positional argument or as ``cfg=``. Other
    arguments go to ``from_config``; keyword arguments that it does not take override its result.
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or init_func.__name__ != "__init__":
            raise TypeError("@configurable without arguments only decorates a class's __init__")
        return _configurable_init(init_func)
    if from_config is None:
        return configurable
    if not inspect.isfunction(from_config):
        raise TypeError("from_config of @configurable must be a function")
    return functools.partial(_configurable_function, from_config=from_config)


def _configurable_init(init_func: Callable) -> Callable:
    @functools.wraps(init_func)
    def wrapped(self, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        try:
            converter = cls.from_config
        except AttributeError as e:
            raise AttributeError(
                f"{cls.__name__} uses @configurable and needs a classmethod from_config(cls, cfg)"
            ) from e
        if not inspect.ismethod(converter):
            raise TypeError(f"{cls.__name__}.from_config must be a classmethod")
        if _is_called_with_cfg(args, kwargs):
            init_func(self, **_explicit_arguments(converter, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(function: Callable, *, from_config: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _is_called_with_cfg(args, kwargs):
            return function(**_explicit_arguments(from_config, args, kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _config_types() -> tuple[type, ...]:
    # OmegaConf is optional; its configs are accepted where it is installed.
    try:
        from omegaconf import DictConfig
    except ImportError:
        return (_CfgNode,)
    return (_CfgNode, DictConfig)


def _is_called_with_cfg(args: tuple, kwargs: dict[str, Any]) -> bool:
    candidate = args[0] if args else kwargs.get("cfg")
    return isinstance(candidate, _config_types())


def _explicit_arguments(converter: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Calls ``converter`` with what it takes; adds to its result the keywords it does not take."""
    parameters = inspect.signature(converter).parameters
    if next(iter(parameters), None) != "cfg":
        where = getattr(converter, "__qualname__", repr(converter))
        raise TypeError(f"the first argument of {where} must be named 'cfg'")
    takes_any = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    if takes_any:
        return converter(*args, **kwargs)
    taken = {name: value for name, value in kwargs.items() if name in parameters}
    overrides = {name: value for name, value in kwargs.items() if name not in parameters}
    return {**converter(*args, **taken), **overrides}
