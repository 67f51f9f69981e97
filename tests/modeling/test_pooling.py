# SPDX-License-Identifier: Apache-2.0
"""The channels-last pooler must equal Detectron2's, also at the edges of the maps."""

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from person_search.modeling.pooling import ChannelsLastPooler, is_replaceable


def boxes_of(count: int, seed: int) -> Boxes:
    """Boxes of every size, partly or wholly outside the image of 128 x 96 pixels."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 200 - 40
    return Boxes(
        torch.cat([corner, corner + torch.rand(count, 2, generator=generator) ** 3 * 150], 1)
    )


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("strides", [(4, 8, 16), (8,)])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_equals_roi_align(kind, strides, samples) -> None:
    pooler = ROIPooler(5, [1 / s for s in strides], samples, kind, 56, 3)
    maps = [torch.randn(2, 6, 96 // s, 128 // s) for s in strides]
    boxes = [boxes_of(40, 0), boxes_of(7, 1)]
    fast = ChannelsLastPooler(pooler)
    wanted = pooler(maps, boxes)
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(fast(maps, boxes), wanted, atol=1e-5, rtol=1e-5)
    maps = [m.to(memory_format=torch.channels_last) for m in maps]
    torch.testing.assert_close(fast(maps, boxes), wanted, atol=1e-5, rtol=1e-5)


def test_windows_are_contiguous_with_the_channels_last() -> None:
    """The head reads (M, cells, C) without a copy."""
    fast = ChannelsLastPooler(ROIPooler(7, [1 / 8], 2, "ROIAlignV2"))
    pooled = fast([torch.randn(1, 6, 12, 16)], [boxes_of(3, 0)])
    assert pooled.shape == (3, 6, 7, 7)
    assert pooled.flatten(2).transpose(1, 2).is_contiguous()


def test_no_boxes() -> None:
    fast = ChannelsLastPooler(ROIPooler(7, [1 / 4, 1 / 8], 2, "ROIAlignV2"))
    maps = [torch.randn(1, 6, 24, 32), torch.randn(1, 6, 12, 16)]
    assert fast(maps, [Boxes(torch.zeros(0, 4))]).shape == (0, 6, 7, 7)


def test_replaceable() -> None:
    assert is_replaceable(ROIPooler(7, [1 / 8], 2, "ROIAlignV2"))
    assert not is_replaceable(ROIPooler(7, [1 / 8], 0, "ROIAlignV2")), "adaptive sampling"
    assert not is_replaceable(ROIPooler(7, [1 / 8], 2, "ROIPool"))
    assert not is_replaceable(ROIPooler((7, 3), [1 / 8], 2, "ROIAlignV2"))
    assert not is_replaceable(torch.nn.Identity())
