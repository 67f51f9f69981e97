# SPDX-License-Identifier: Apache-2.0
"""Sizes of resized images, without PyTorch: exported models use them too."""

import math

SIZE_MULTIPLE = 64
"""Sides of the images of a diffusion model are multiples of this number of pixels."""


def budget_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Returns the (height, width) in multiples of 64 that best keeps the aspect ratio.

    Of the sizes with at most ``max_pixels`` it is the one with the largest product of the used
    share of the budget and min(r, 1 / r), where r is the change of the aspect ratio.
    """
    aspect = size[1] / size[0]
    best, best_value = (SIZE_MULTIPLE, SIZE_MULTIPLE), 0.0
    for height in range(SIZE_MULTIPLE, max_pixels // SIZE_MULTIPLE + 1, SIZE_MULTIPLE):
        ideal = height * aspect / SIZE_MULTIPLE
        for width in {max(1, math.floor(ideal)) * SIZE_MULTIPLE, math.ceil(ideal) * SIZE_MULTIPLE}:
            if height * width > max_pixels:
                continue
            ratio = width / height / aspect
            value = height * width / max_pixels * min(ratio, 1 / ratio)
            if value > best_value:
                best, best_value = (height, width), value
    return best
