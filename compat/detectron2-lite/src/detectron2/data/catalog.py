# SPDX-License-Identifier: Apache-2.0
"""Data sets and facts about them, by name."""

import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

from detectron2.utils.logger import log_first_n

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Names of data sets, and the functions that load them.

    A function takes nothing and returns the records of the data set: a list of dicts, the same
    in the same order every time.
    """

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Adds a data set.

        Args:
            name: a name that is not in use, for example "prw_test".
            func: loads it. It is called at every ``get``, and not before.
        """
        assert callable(func), f"dataset '{name}' needs a function that loads it, got {func!r}"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> Any:
        """Loads a data set; ``KeyError`` lists the names there are."""
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
        """Forgets a data set."""
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
"""The one catalog of data sets."""


class Metadata(types.SimpleNamespace):
    """Facts about a data set that are known without loading it, such as its class names.

    A fact, once set, cannot be set to another value.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        current = _current_name(key)
        if current != key:
            return getattr(self, current)
        if len(self.__dict__) > 1:
            hint = f"Available keys are {self.__dict__.keys()}."
        else:
            hint = "Its metadata is empty: is the data set registered, and its name right?"
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
        """Returns a copy of all facts. Changing it changes nothing here."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Sets several facts; returns the object, so that calls can be chained."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a fact, or ``default`` where it is not known."""
        return getattr(self, key, default)


# Names of before, which code in the wild still uses.
_RENAMED_FACTS = {
    "class_names": "thing_classes",
    "stuff_class_names": "stuff_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
}


def _current_name(key: str) -> str:
    """Returns today's name of a fact, with a warning if it has changed."""
    current = _RENAMED_FACTS.get(key, key)
    if current != key:
        log_first_n(logging.WARNING, f"Metadata '{key}' is now called '{current}'.", n=10)
    return current


class _MetadataCatalog(UserDict):
    """``Metadata`` by the name of the data set."""

    def get(self, name: str) -> Metadata:
        """Returns the metadata of ``name``: always the same object, empty at first."""
        assert len(name), "the name of a data set must not be empty"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Returns the names of all data sets that have metadata."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Forgets the metadata of a data set."""
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __repr__ = __str__


MetadataCatalog = _MetadataCatalog()
"""The one catalog of metadata."""
