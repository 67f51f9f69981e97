# SPDX-License-Identifier: Apache-2.0
"""Keypoint annotations. They are loaded and transformed; models for keypoints are absent."""

from typing import Any

import numpy as np
import torch


class Keypoints:
    """K keypoints for each of N instances.

    Attributes:
        tensor: (N, K, 3) float tensor of x, y in pixels and visibility (0 not labelled,
            1 labelled but not visible, 2 visible).
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | list[list[float]]):
        device = keypoints.device if isinstance(keypoints, torch.Tensor) else torch.device("cpu")
        tensor = torch.as_tensor(keypoints, dtype=torch.float32, device=device)
        if tensor.dim() != 3 or tensor.shape[2] != 3:
            raise AssertionError(f"keypoints must be (N, K, 3), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the keypoints."""
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> "Keypoints":
        """Calls ``Tensor.to`` on the keypoints."""
        return type(self)(self.tensor.to(*args, **kwargs))

    def __getitem__(self, item: int | slice | torch.BoolTensor) -> "Keypoints":
        """Indexes along N; an integer gives an object with N = 1."""
        rows = self.tensor[item]
        return Keypoints(rows[None] if isinstance(item, int) else rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    @staticmethod
    def cat(keypoints_list: list["Keypoints"]) -> "Keypoints":
        """Concatenates keypoints along N."""
        if not keypoints_list:
            raise AssertionError("there must be at least one Keypoints to join")
        return Keypoints(torch.cat([keypoints.tensor for keypoints in keypoints_list], dim=0))
