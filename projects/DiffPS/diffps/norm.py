# SPDX-License-Identifier: Apache-2.0
"""Batch norm and whole modules on very few rows, or on none."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RowNorm(nn.BatchNorm1d):
    """BatchNorm1d that also trains on fewer than two rows, which have no variance.

    Such rows are normalized by the running statistics, which do not change.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        if self.training and len(x) < 2:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def is_empty(x: Tensor) -> bool:
    """Returns whether a tensor has no rows; an exported graph runs modules on any number."""
    return not torch.compiler.is_exporting() and len(x) == 0


def no_rows(module: nn.Module, x: Tensor, *shape: int) -> Tensor:
    """Returns the output of ``module`` for the empty input ``x``, (0, *shape), without running it.

    The result depends on the input and on all parameters of the module, so that they get a (zero)
    gradient, as distributed training requires, and no batch norm receives an empty batch.
    """
    tie = x.sum() + sum(p.sum() for p in module.parameters() if p.requires_grad)
    return x.new_zeros(0, *shape) + 0.0 * tie
