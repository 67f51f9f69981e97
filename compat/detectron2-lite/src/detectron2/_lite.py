# SPDX-License-Identifier: Apache-2.0
"""How a name that Detectron2 has and the stand-in lacks says so.

Two ways, by how the name is likely to be met:

* ``absent``: importing the name fails at once, with an ``ImportError`` that says what to install.
* ``absent_class``: importing works and *using* the class fails with the same words. For names that
  modules import at the top although only a corner of them needs the class.
"""

from collections.abc import Callable
from typing import Any, NoReturn

INSTALL_URL = "https://detectron2.readthedocs.io/tutorials/install.html"


class NotInLiteError(ImportError):
    """The real Detectron2 has this name; detectron2-lite does not."""


def absence_message(qualified_name: str) -> str:
    """Returns the one sentence that every missing part of lite answers with."""
    return f"{qualified_name} is not in detectron2-lite; install Detectron2 (see {INSTALL_URL})"


def absent(module_name: str, *known_names: str) -> Callable[[str], NoReturn]:
    """Makes the module-level ``__getattr__`` of a package of lite.

    Args:
        module_name: ``__name__`` of the package.
        known_names: names which the real package has and this one lacks. They raise an
            ``ImportError``, because ``from module import name`` would replace the words of an
            ``AttributeError`` by its own.

    Returns:
        A function that raises for every name. Names that are not known to be Detectron2's raise
        a plain ``AttributeError``, so that ``hasattr`` keeps its meaning.
    """
    names = frozenset(known_names)

    def __getattr__(name: str) -> NoReturn:
        qualified_name = f"{module_name}.{name}"
        if name in names:
            raise NotInLiteError(absence_message(qualified_name), name=qualified_name)
        if name.startswith("__"):
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        raise AttributeError(absence_message(qualified_name), name=name)

    return __getattr__


def absent_class(module_name: str, name: str) -> type:
    """Makes a class that can be imported, named and tested with isinstance, but not used.

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
