# SPDX-License-Identifier: Apache-2.0
"""Batch norm and whole modules on very few rows, or none."""

import torch.nn.functional as F
from torch import Tensor, nn


class RowNorm(nn.BatchNorm1d):
    """BatchNorm1d that also trains on fewer than two rows, where a variance does not exist.

    Such rows are normalised by the running statistics, which stay as they are. (N, C) -> (N, C).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 2:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def no_rows(module: nn.Module, x: Tensor, *shape: int) -> Tensor:
    """What ``module`` would give for the empty input ``x``: zeros of (0, *shape).

    The result is tied to the input and to all parameters of the module, so that they get a (zero)
    gradient as distributed training expects, and no batch norm sees an empty batch.
    """
    tie = x.sum() + sum(p.sum() for p in module.parameters() if p.requires_grad)
    return x.new_zeros(0, *shape) + 0.0 * tie
