# SPDX-License-Identifier: Apache-2.0
"""Patches that allow TorchScript to compile models.

TorchScript needs a type for every attribute of a class, while ``Instances`` accepts any field. So a
class with given fields is generated, compiled, and temporarily replaces ``Instances``.
"""

import contextlib
import copy
import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

_counter = itertools.count(1)

_CLASS = """\
from typing import Dict, List, Optional, Tuple
import torch


class {name}:
    def __init__(self, image_size: Tuple[int, int], {init_args}):
        self.image_size = image_size
        self._field_names = {field_names}
        {init_body}

    def __len__(self) -> int:
        {len_body}
        raise NotImplementedError("Instances without fields do not have a length")

    def has(self, name: str) -> bool:
        {has_body}
        return False

    def to(self, device: torch.device) -> "{name}":
        result = {name}(self.image_size{nones})
        {to_body}
        return result

    def __getitem__(self, item) -> "{name}":
        result = {name}(self.image_size{nones})
        {getitem_body}
        return result

    def cat(self, instances: List["{name}"]) -> "{name}":
        result = {name}(self.image_size{nones})
        {cat_body}
        return result

    def get_fields(self) -> Dict[str, torch.Tensor]:
        result: Dict[str, torch.Tensor] = {{}}
        {get_fields_body}
        return result
{properties}

# TorchScript resolves names in the calling module
torch.jit.script({name})
"""

_PROPERTY = """
    @property
    def {field}(self) -> Type_{field}:
        value = self._{field}
        assert value is not None, "{field} is not set"
        return value

    @{field}.setter
    def {field}(self, value: Type_{field}) -> None:
        self._{field} = value
"""


def _body(statements: list[str]) -> str:
    """Joins statements at the indentation of a method."""
    lines = itertools.chain.from_iterable(s.splitlines() for s in statements)
    return "\n        ".join(lines) or "pass"


def _if_set(field: str, then: str) -> str:
    # TorchScript refines the type of a local variable, not of an attribute
    return f"value_{field} = self._{field}\nif value_{field} is not None:\n    {then}"


def _class_source(name: str, fields: dict[str, type]) -> str:
    """Returns the source of a module that defines a class with the given fields."""

    def for_fields(statement: str, needs: str | None = None) -> str:
        return _body(
            [
                _if_set(f, statement.format(f=f))
                for f, t in fields.items()
                if needs is None or hasattr(t, needs)
            ]
        )

    cat, tensors = [], []
    for f, t in fields.items():
        if t is torch.Tensor:
            joined = f"torch.cat([i.{f} for i in instances], dim=0)"
            tensors.append(_if_set(f, f'result["{f}"] = value_{f}'))
        elif t is Boxes:
            joined = f"Type_{f}(torch.cat([i.{f}.tensor for i in instances], dim=0))"
            tensors.append(_if_set(f, f'result["{f}"] = value_{f}.tensor'))
        else:
            continue
        cat.append(_if_set(f, f"result._{f} = {joined}"))

    return _CLASS.format(
        name=name,
        field_names=list(fields),
        init_args=", ".join(f"{f}: Optional[Type_{f}] = None" for f in fields),
        # the defaults of the class are unknown while it is compiled
        nones=", None" * len(fields),
        init_body=_body([f"self._{f} = {f}" for f in fields]),
        len_body=for_fields("return len(value_{f})", "__len__"),
        has_body=_body([f'if name == "{f}":\n    return self._{f} is not None' for f in fields]),
        to_body=for_fields("result._{f} = value_{f}.to(device)", "to"),
        getitem_body=for_fields("result._{f} = value_{f}[item]", "__getitem__"),
        cat_body=_body(cat),
        get_fields_body=_body(tensors),
        properties="".join(_PROPERTY.format(field=f) for f in fields),
    )


def _make_class(fields: dict[str, type], folder: str) -> type:
    """Writes the class to a file, because TorchScript needs source files, and imports it."""
    name = f"ScriptedInstances{next(_counter)}"
    module_name = f"detectron2.export._generated_{name}"
    file_name = os.path.join(folder, f"{name}.py")
    with open(file_name, "w") as f:
        f.write(_class_source(name, fields))
    spec = importlib.util.spec_from_file_location(module_name, file_name)
    module = importlib.util.module_from_spec(spec)
    for field, field_type in fields.items():
        setattr(module, f"Type_{field}", field_type)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    made = getattr(module, name)

    def from_instances(instances: Instances):
        """Converts ``Instances``, whose fields must be declared."""
        result = made(instances.image_size)
        for field, value in instances.get_fields().items():
            assert field in fields, f"No field named {field} in ScriptedInstances"
            setattr(result, field, copy.deepcopy(value))
        return result

    # after the compilation, because TorchScript cannot compile it
    made.from_instances = staticmethod(from_instances)
    return made


def _clear_jit_cache() -> None:
    """Clears TorchScript's caches, which depend on the class that replaces ``Instances``."""
    torch.jit._recursive.concrete_type_store.type_store.clear()
    torch.jit._recursive.concrete_type_store.methods_compiled.clear()
    torch.jit._state._jit_caching_layer.clear()


@contextlib.contextmanager
def patch_instances(fields: dict[str, type]) -> Iterator[type]:
    """Context manager in which TorchScript replaces ``Instances`` by a generated class.

    Args:
        fields: Type of every field by name: ``torch.Tensor``, ``Boxes``, or another class that
            TorchScript can compile.

    Yields:
        The class. Its static method ``from_instances`` converts ``Instances``.
    """
    with tempfile.TemporaryDirectory(prefix="detectron2_lite_") as folder:
        _clear_jit_cache()
        made = _make_class(fields, folder)
        marks = {
            "__torch_script_class__": True,
            "_jit_override_qualname": torch._jit_internal._qualified_name(made),
        }
        try:
            for name, value in marks.items():
                setattr(Instances, name, value)
            yield made
        finally:
            for name in marks:
                delattr(Instances, name)
            sys.modules.pop(made.__module__)
            _clear_jit_cache()


@contextlib.contextmanager
def patch_builtin_len(modules=()) -> Iterator[None]:
    """Context manager in which ``len`` in the modeling code keeps traced lengths dynamic.

    The built-in ``len`` converts a length to an integer, which is a constant in a trace.

    Args:
        modules: Names of further modules to patch.
    """
    names = [n for n in sys.modules if n.startswith("detectron2.modeling.")] + list(modules)
    changed = [sys.modules[name] for name in dict.fromkeys(names)]
    for module in changed:
        module.len = lambda x: x.__len__()
    try:
        yield
    finally:
        for module in changed:
            del module.len


@contextlib.contextmanager
def freeze_training_mode(model: nn.Module) -> Iterator[None]:
    """Context manager in which ``training`` of the model is a constant for TorchScript.

    TorchScript then skips the code for the other mode, which it may not be able to compile.
    """
    classes = {type(module) for module in model.modules()} | {nn.ModuleList}
    kept = [(cls.__annotations__, dict(cls.__annotations__)) for cls in classes]
    for annotations, _ in kept:
        annotations["training"] = torch.jit.Final[bool]
    try:
        yield
    finally:
        for annotations, before in kept:
            annotations.clear()
            annotations.update(before)
