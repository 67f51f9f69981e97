# SPDX-License-Identifier: Apache-2.0
"""Identity of the model behind an embedding: a hash of its weights and the relevant config keys.

Embeddings of different models live in different spaces, where similarities are meaningless. A
gallery therefore stores the identity of its model and accepts no other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from person_search.search.errors import OtherModelError


@dataclass(frozen=True)
class ModelIdentity:
    """Equal for two models if and only if their embeddings may be compared.

    Attributes:
        architecture: Class name of the model.
        weights: SHA-256 of all parameters and buffers by name, independent of the file format.
        config: Flat config keys and plain values that change what the model computes.
        detection: Settings that decide which persons enter a gallery. They must agree for all
            images of a gallery, but not for a query.
    """

    architecture: str
    weights: str
    config: Mapping[str, Any] = field(default_factory=dict)
    detection: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, config: Mapping[str, Any], detection: Mapping[str, Any]
    ) -> "ModelIdentity":
        """Hashes the weights of a model and returns its identity."""
        return cls(type(model).__name__, hash_weights(model), _plain(config), _plain(detection))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ModelIdentity":
        """Inverse of :meth:`to_json`."""
        return cls(**{key: fields[key] for key in cls.__dataclass_fields__})

    def to_json(self) -> dict:
        """Returns the identity as plain types."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__}

    def differences(self, other: "ModelIdentity", detection: bool = False) -> list[str]:
        """Describes the differences from another identity.

        Args:
            other: Identity described as "here"; ``self`` is that of the gallery.
            detection: Also compare the detection settings.

        Returns:
            One phrase per difference; empty if the embeddings may be compared.
        """
        found = []
        if self.architecture != other.architecture:
            found.append(f"the architecture ({self.architecture}, here {other.architecture})")
        if self.weights != other.weights:
            found.append(f"the weights (sha256 {self.weights[:12]}, here {other.weights[:12]})")
        pairs = [(self.config, other.config)]
        if detection:
            pairs.append((self.detection, other.detection))
        for mine, theirs in pairs:
            for key in sorted({*mine, *theirs}):
                if mine.get(key) != theirs.get(key):
                    found.append(f"{key} ({mine.get(key)}, here {theirs.get(key)})")
        return found

    def require(self, other: "ModelIdentity", folder: object, detection: bool = False) -> None:
        """Compares the identity of a gallery (``self``) with that of a model.

        Args:
            other: Identity of the model.
            folder: Gallery, for the message.
            detection: Also compare the detection settings.

        Raises:
            OtherModelError: If they differ; the message lists the first differences.
        """
        found = self.differences(other, detection)
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise OtherModelError(
                f"the gallery '{folder}' was made by another model or with other settings. "
                f"Different: {', '.join(found[:5])}{more}. Use the model of the gallery, or index "
                "the images into a new gallery."
            )


def hash_weights(model: nn.Module) -> str:
    """Returns the SHA-256 of the names, types, shapes and bytes of all tensors of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts values to what JSON gives back, for example tuples to lists."""
    return json.loads(json.dumps(dict(values), sort_keys=True, default=str))
