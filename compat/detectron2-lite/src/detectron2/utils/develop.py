# SPDX-License-Identifier: Apache-2.0
"""Place holders for classes and functions whose optional dependency is missing."""


def _missing(name: str, dependency: str | list | tuple, message: str) -> str:
    if isinstance(dependency, list | tuple):
        dependency = ",".join(dependency)
    text = f"Cannot import '{dependency}', therefore '{name}' is not available."
    return f"{text} {message}" if message else text


def create_dummy_class(klass: str, dependency: str, message: str = "") -> type:
    """A class that raises ImportError when it is instantiated or an attribute of it is read.

    Args:
        klass: name of the class that cannot be offered.
        dependency: what is not installed.
        message: further help for the user.
    """
    error = _missing(klass, dependency, message)

    class _DummyMeta(type):
        def __getattr__(cls, name):
            raise ImportError(error)

    class _Dummy(metaclass=_DummyMeta):
        def __init__(self, *args, **kwargs):
            raise ImportError(error)

    return _Dummy


def create_dummy_func(func: str, dependency: str | list | tuple, message: str = ""):
    """A function that raises ImportError when it is called; arguments as above."""
    error = _missing(func, dependency, message)

    def _dummy(*args, **kwargs):
        raise ImportError(error)

    return _dummy
