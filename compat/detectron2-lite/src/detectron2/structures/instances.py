# SPDX-License-Identifier: Apache-2.0
"""The instances of one image."""

import itertools
import warnings
from typing import Any

import torch


class Instances:
    """N instances of one image: named fields of length N, and the image size.

    Fields are set and read like attributes, for example ``instances.gt_boxes = Boxes(...)``. A
    field can be any object with a length that can be indexed, such as a tensor, ``Boxes`` or a
    list. ``instances[index]`` indexes all fields.

    Args:
        image_size: (height, width) of the image in pixels.
        **kwargs: Fields.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        # private names are attributes, all others are fields
        store = super().__setattr__ if name.startswith("_") else self.set
        store(name, val)

    def __getattr__(self, name: str) -> Any:
        # unpickling asks before _fields is set
        fields = self.__dict__.get("_fields", {})
        if name not in fields:
            raise AttributeError(f"these Instances have no field '{name}', only {list(fields)}")
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Sets a field, which must have the length of the other fields."""
        with warnings.catch_warnings(record=True):
            # PyTorch warns about len() of a traced tensor
            length = len(value)
        if self._fields:
            assert len(self) == length, (
                f"field '{name}' of length {length} cannot join fields of length {len(self)}"
            )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Returns whether the field exists."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Deletes a field."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """Returns a field; raises ``KeyError`` if it does not exist."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Returns the dict of all fields; changes to it change the object."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Returns a copy with ``to`` called on every field that has this method."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: int | slice | torch.BoolTensor) -> "Instances":
        """Indexes every field; an integer gives an object with N = 1."""
        if type(item) is int:
            # range() handles negative indices and raises IndexError
            index = range(len(self))[item]
            item = slice(index, index + 1)
        selected = Instances(self._image_size)
        for name, value in self._fields.items():
            selected.set(name, value[item])
        return selected

    def __len__(self) -> int:
        for value in self._fields.values():
            # len() would make a constant of the length of a traced tensor
            return value.__len__()
        raise NotImplementedError("Instances without fields do not have a length")

    def __iter__(self):
        raise NotImplementedError("iterate over a field of the Instances, not over them")

    @staticmethod
    def cat(instance_lists: list["Instances"]) -> "Instances":
        """Concatenates instances of the same image, which must have the same fields."""
        assert instance_lists, "there must be at least one Instances to join"
        first, *others = instance_lists
        if not others:
            return first
        image_size = first.image_size
        if not isinstance(image_size, torch.Tensor):  # it is one in a trace
            for other in others:
                assert other.image_size == image_size, f"{other.image_size} is not {image_size}"
        joined = Instances(image_size)
        for name in first.get_fields():
            joined.set(name, _join([instances.get(name) for instances in instance_lists]))
        return joined

    def __str__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"{type(self).__name__}(num_instances={len(self)}, image_height={height}, "
            f"image_width={width}, fields=[{fields}])"
        )

    __repr__ = __str__


def _join(values: list[Any]) -> Any:
    """Concatenates the values of one field."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(first, list):
        return list(itertools.chain(*values))
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(f"Unsupported type {type(first)} for concatenation")
