# SPDX-License-Identifier: Apache-2.0
"""Errors for the names that Detectron2 has and detectron2-lite lacks.

* Importing an absent module, or an absent name from a package, raises ``NotInLiteError``
  (``AbsentModuleFinder``); reading an absent attribute raises ``AttributeError`` with the same
  message (``absent``).
* ``absent_class`` makes a placeholder that can be imported but not used. It stands for the names
  that extension projects import at the top of a module for one of several options.
"""

from collections.abc import Callable
from typing import Any, NoReturn

INSTALL_URL = "https://detectron2.readthedocs.io/tutorials/install.html"


class NotInLiteError(ImportError):
    """Raised for a name of Detectron2 that detectron2-lite does not have."""


def absence_message(qualified_name: str) -> str:
    """Returns the error message for an absent name or option."""
    return f"{qualified_name} is not in detectron2-lite; install Detectron2 (see {INSTALL_URL})"


class AbsentModuleFinder:
    """Finder at the end of ``sys.meta_path`` that reports absent modules of detectron2.

    The import system also asks it for the names of ``from detectron2.x import name`` that the
    package ``detectron2.x`` does not have.
    """

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> None:
        """Raises ``NotInLiteError`` for a module of detectron2; returns None for all others."""
        if fullname.startswith("detectron2.") and not fullname.rpartition(".")[2].startswith("_"):
            raise NotInLiteError(absence_message(fullname), name=fullname)


def absent(module_name: str, *known_names: str) -> Callable[[str], NoReturn]:
    """Returns a module-level ``__getattr__`` that explains absent names.

    Args:
        module_name: ``__name__`` of the module.
        known_names: Names of the real module that raise ``NotInLiteError``. A module that is not a
            package lists them here, because ``from module import name`` replaces the message of an
            ``AttributeError``. All other names raise ``AttributeError``, as ``hasattr`` expects.
    """

    def __getattr__(name: str) -> NoReturn:
        qualified_name = f"{module_name}.{name}"
        if name in known_names:
            raise NotInLiteError(absence_message(qualified_name), name=qualified_name)
        if name.startswith("__"):
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        raise AttributeError(absence_message(qualified_name), name=name)

    return __getattr__


def absent_class(module_name: str, name: str) -> type:
    """Returns a class that can be imported and used in isinstance checks, but not instantiated.

    Creating an instance or reading a public attribute of the class raises ``NotInLiteError``.
    """
    message = absence_message(f"{module_name}.{name}")

    class _AbsentMeta(type):
        def __getattr__(cls, attribute: str) -> NoReturn:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            raise NotInLiteError(message, name=name)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotInLiteError(message, name=name)

    namespace = {"__init__": __init__, "__doc__": message, "__module__": module_name}
    return _AbsentMeta(name, (), namespace)
