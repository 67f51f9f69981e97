# SPDX-License-Identifier: Apache-2.0
"""Sampling of foreground and background."""

import torch
from detectron2.layers import nonzero_tuple


def subsample_labels(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples at most ``num_samples`` elements, of which a limited number is foreground.

    Background fills up missing foreground, but not the reverse.

    Args:
        labels: (N,) labels; -1 is ignored, ``bg_label`` is background, all others are foreground.
        num_samples: Total number of samples.
        positive_fraction: Maximum fraction of foreground.
        bg_label: Label of background.

    Returns:
        Two 1-d tensors of indices, of foreground and of background, in random order.
    """
    foreground = nonzero_tuple((labels != -1) & (labels != bg_label))[0]
    background = nonzero_tuple(labels == bg_label)[0]

    num_fg = min(int(num_samples * positive_fraction), foreground.numel())
    num_bg = min(num_samples - num_fg, background.numel())
    # foreground first: the order of the random draws must be that of Detectron2
    fg_order = torch.randperm(foreground.numel(), device=foreground.device)[:num_fg]
    bg_order = torch.randperm(background.numel(), device=background.device)[:num_bg]
    return foreground[fg_order], background[bg_order]
