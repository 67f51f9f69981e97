# SPDX-License-Identifier: Apache-2.0
"""What a model provides for ``person-search export``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class ExportedModel:
    """A model as a graph.

    Attributes:
        program: Graph of ``torch.export``.
        input_names: Names of the inputs of the graph.
        output_names: Names of the outputs of the graph.
        values: What a program needs to run the graph, as plain types.
    """

    program: torch.export.ExportedProgram
    input_names: Sequence[str]
    output_names: Sequence[str]
    values: Mapping[str, Any]


@runtime_checkable
class Exports(Protocol):
    """Optional hook of a model that can leave Python."""

    backbone: Any

    def export(self, max_side: int) -> ExportedModel:
        """Exports the model for padded images with sides up to ``max_side``.

        Raises:
            ValueError: If a setting of the model cannot be exported.
        """
