# SPDX-License-Identifier: Apache-2.0
"""``CfgNode``, the global config, and ``@configurable``."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from detectron2._lite import NotInLiteError, absence_message, absent
from detectron2.utils.file_io import PathManager
from fvcore.common.config import CfgNode as _CfgNode

__getattr__ = absent(__name__, "downgrade_config", "upgrade_config")


class CfgNode(_CfgNode):
    """fvcore's config node with files opened by ``PathManager``."""

    @classmethod
    def _open_cfg(cls, filename: str):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merges a YAML file, and the files it names under ``_BASE_``, into this config.

        Args:
            cfg_filename: Path or URL of the YAML file.
            allow_unsafe: Whether to retry with the YAML loader that can build Python objects, if
                the safe one refuses the file.

        Raises:
            AssertionError: The file does not exist, or is of a newer VERSION.
            NotInLiteError: The file is of an older VERSION.
        """
        assert PathManager.isfile(cfg_filename), f"config file '{cfg_filename}' does not exist"
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        version = loaded.get("VERSION", self.VERSION)
        if version < self.VERSION:
            raise NotInLiteError(
                absence_message(f"The upgrade of {cfg_filename} from VERSION {version}")
            )
        assert version == self.VERSION, (
            f"{cfg_filename} has VERSION {version}, but the latest known is {self.VERSION}; use a "
            "newer Detectron2"
        )
        self.merge_from_other_cfg(loaded)


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """Returns a copy of the default config."""
    from .defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Copies the keys of ``cfg`` to ``global_cfg``, for code that has no access to the config."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None):
    """Allows a class or a function to be called with explicit arguments or with a config.

    ``@configurable`` decorates the ``__init__`` of a class with a classmethod
    ``from_config(cls, cfg, ...)`` that returns a dict of arguments for ``__init__``.
    ``@configurable(from_config=...)`` decorates a function.

    The config is recognized by its type, as the first positional argument or as ``cfg=``. Other
    arguments are passed to ``from_config``; keyword arguments that it does not take override its
    result.

    Args:
        init_func: The ``__init__`` method to decorate.
        from_config: For a function, the converter from a config to a dict of arguments.
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or init_func.__name__ != "__init__":
            raise TypeError("@configurable without arguments can only decorate __init__")
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
    """Calls ``converter``; keyword arguments that it does not take are added to its result."""
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
