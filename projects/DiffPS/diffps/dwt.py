# SPDX-License-Identifier: Apache-2.0
"""One level of the two-dimensional Haar wavelet transform and its inverse.

A 2x2 block of the map, ``a b`` over ``c d``, becomes one cell in each of four sub-bands:
LL = (a + b + c + d) / 2, the average; LH = (a + b - c - d) / 2, top against bottom;
HL = (a - b + c - d) / 2, left against right; HH = (a - b - c + d) / 2, the diagonals.
The transform is orthonormal, so its inverse is the same sum with the same signs.
"""

import torch.nn.functional as F
from torch import Tensor

SubBands = tuple[Tensor, Tensor, Tensor, Tensor]
"""LL, LH, HL, HH."""


def haar_dwt(x: Tensor) -> SubBands:
    """Splits a map into its sub-bands.

    Args:
        x: (..., H, W). An odd side is padded with a row or column of zeros.

    Returns:
        LL, LH, HL, HH, each (..., ceil(H / 2), ceil(W / 2)).
    """
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    top, bottom = (a + b) / 2, (c + d) / 2
    left_right_top, left_right_bottom = (a - b) / 2, (c - d) / 2
    return (
        top + bottom,
        top - bottom,
        left_right_top + left_right_bottom,
        left_right_top - left_right_bottom,
    )


def haar_idwt(bands: SubBands, size: tuple[int, int] | None = None) -> Tensor:
    """Reconstructs a map from its sub-bands.

    Args:
        bands: LL, LH, HL, HH, each (..., h, w).
        size: (H, W) of the map, which removes the padding. Default: (2h, 2w).

    Returns:
        (..., H, W).
    """
    ll, lh, hl, hh = bands
    top, bottom = (ll + lh) / 2, (ll - lh) / 2
    left_right_top, left_right_bottom = (hl + hh) / 2, (hl - hh) / 2
    height, width = ll.shape[-2:]
    x = ll.new_empty(*ll.shape[:-2], 2 * height, 2 * width)
    x[..., 0::2, 0::2] = top + left_right_top
    x[..., 0::2, 1::2] = top - left_right_top
    x[..., 1::2, 0::2] = bottom + left_right_bottom
    x[..., 1::2, 1::2] = bottom - left_right_bottom
    return x if size is None else x[..., : size[0], : size[1]]
