# SPDX-License-Identifier: Apache-2.0
"""Inference in groups of images with one padded size."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


def run_by_size(
    function: Callable[..., Sequence[Result]],
    batched_inputs: Sequence[dict],
    *columns: Sequence,
    size_divisibility: int,
) -> list[Result]:
    """Calls a function once for each padded size of the images in a batch.

    Beside a larger image, an image is padded more than alone. Convolutions with a bias, norms and
    region proposals see the padding, so predictions near the border, and all that compete with
    them, depend on the other images of the batch.

    Args:
        function: Receives the inputs and columns of one group; returns one result per image.
        batched_inputs: One dict per image with ``image`` (C, H, W).
        *columns: Further sequences with one item per image.
        size_divisibility: Height and width are padded to multiples of it; 0: no padding.

    Returns:
        The results in the order of the inputs.
    """
    step = max(size_divisibility, 1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, x in enumerate(batched_inputs):
        padded = tuple(-(-side // step) for side in x["image"].shape[-2:])
        groups.setdefault(padded, []).append(index)
    results: dict[int, Result] = {}
    for indices in groups.values():
        parts = ([column[i] for i in indices] for column in (batched_inputs, *columns))
        results |= zip(indices, function(*parts), strict=True)
    return [results[index] for index in range(len(batched_inputs))]
