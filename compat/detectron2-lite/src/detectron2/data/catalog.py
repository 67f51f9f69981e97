# SPDX-License-Identifier: Apache-2.0
"""Catalogs of data sets and of their metadata."""

import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

from detectron2.utils.logger import log_first_n


class _DatasetCatalog(UserDict):
    """Maps names of data sets to the functions that load them.

    A function has no arguments and returns the records of the data set: a list of dicts, always
    in the same order.
    """

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Registers a data set.

        Args:
            name: New name, for example "prw_test".
            func: Function that loads the data set; every ``get`` calls it.
        """
        assert callable(func), f"the loader of dataset '{name}' must be a function, got {func!r}"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> Any:
        """Loads a data set; raises ``KeyError`` with the registered names if it is unknown."""
        try:
            func = self[name]
        except KeyError as e:
            known = ", ".join(self) or "none"
            raise KeyError(
                f"Dataset '{name}' is not registered! Available datasets are: {known}"
            ) from e
        return func()

    def list(self) -> list[str]:
        """Returns the names of all data sets."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Removes a data set."""
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
"""The global catalog of data sets."""


class Metadata(types.SimpleNamespace):
    """Metadata of a data set, such as the names of its classes.

    A key cannot be set to a different value later.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        current = _current_name(key)
        if current != key:
            return getattr(self, current)
        if len(self.__dict__) > 1:
            hint = f"Available keys are {self.__dict__.keys()}."
        else:
            hint = "Its metadata is empty: check that the data set is registered under this name."
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. {hint}"
        )

    def __setattr__(self, key: str, val: Any) -> None:
        key = _current_name(key)
        known = self.__dict__.setdefault(key, val)
        assert known == val, (
            f"'{key}' in the metadata of '{self.name}' is {known}; "
            f"it cannot be set to a different value, {val}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns a copy of all metadata as a dict."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Sets several keys and returns the object."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key, or ``default`` if it is not set."""
        return getattr(self, key, default)


# Old name -> name of a key.
_RENAMED_KEYS = {
    "class_names": "thing_classes",
    "stuff_class_names": "stuff_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
}


def _current_name(key: str) -> str:
    """Returns the current name of a key and logs a warning if it was renamed."""
    current = _RENAMED_KEYS.get(key, key)
    if current != key:
        log_first_n(logging.WARNING, f"Metadata '{key}' is now called '{current}'.", n=10)
    return current


class _MetadataCatalog(UserDict):
    """Maps names of data sets to their ``Metadata``."""

    def get(self, name: str) -> Metadata:
        """Returns the metadata of ``name``, which is created if necessary."""
        assert len(name), "the name of a data set must not be empty"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Returns the names of all data sets that have metadata."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Removes the metadata of a data set."""
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __repr__ = __str__


MetadataCatalog = _MetadataCatalog()
"""The global catalog of metadata."""
