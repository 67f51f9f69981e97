# SPDX-License-Identifier: Apache-2.0
"""Draw a balanced subset of labelled rows."""

import torch
from detectron2.layers import nonzero_tuple

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose at most `num_samples` rows, at most `positive_fraction` of them foreground.

    Missing foreground rows are made up for by background rows, never the other way round.

    Args:
        labels: (N,) integers; -1 is never chosen, `bg_label` is background, all else foreground.
        num_samples: rows wanted in all.
        positive_fraction: share of them that may be foreground.
        bg_label: the label of background.

    Returns:
        Two 1-d int64 tensors with the rows chosen, foreground and background, in random order.
    """
    foreground = nonzero_tuple((labels != -1) & (labels != bg_label))[0]
    background = nonzero_tuple(labels == bg_label)[0]

    num_fg = min(int(num_samples * positive_fraction), foreground.numel())
    num_bg = min(num_samples - num_fg, background.numel())
    # Foreground draws first: this order is part of reproducing a seeded run.
    return _choose(foreground, num_fg), _choose(background, num_bg)


def _choose(rows: torch.Tensor, count: int) -> torch.Tensor:
    return rows[torch.randperm(rows.numel(), device=rows.device)[:count]]
