# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions with 2.25 times fewer multiplications, for frozen float32 models on CPUs.

Shape shorthand: B images, C and D channels in and out, (H, W) cells, T tiles of 2 x 2 outputs.

Winograd's F(2x2, 3x3) computes a tile of 2 x 2 outputs from 4 x 4 inputs d as
``A^T [(G g G^T) * (B^T d B)] A``: 16 products where the definition has 36. Summed over channels,
each of the 16 positions is a matrix product (T, C) x (C, D), and the rest is additions. The weights
never change here, so ``G g G^T`` is computed once; they take 16/9 of the memory. The result is as
exact as the direct one but for its last bits: its relative error is 4e-7 instead of 3e-7.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, arXiv 1509.09308.
GPUs do without: cuDNN has algorithms of its own, and half precision lacks the digits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_CHANNELS = 128
"""Below, additions and copies take longer than the multiplications saved."""

_STRIP_FLOATS = 2_000_000  # of intermediate results: 8 MB stay in a cache
_STRIP_TILES = 256  # at least, or the matrix products become slow


class WinogradConv2d(nn.Module):
    """A frozen 3x3 convolution with stride 1 and zero padding of 1. Has no backward pass."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """
        Args:
            conv: one that :func:`is_suitable`; it is not changed.
        """
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        weight = transform_weight(conv.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        bias = weight.new_zeros(weight.shape[2]) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias, requires_grad=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W), with the channels last in memory."""
        batch, _, height, width = x.shape
        rows, columns = -(-height // 2), -(-width // 2)
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + width % 2, 1, 1 + height % 2))
        out = x.new_empty(batch, rows, 2, columns, 2, self.out_channels)
        step = self._rows_per_strip(batch * columns)
        for first in range(0, rows, step):
            strip = out[:, first : first + step]
            inputs = x[:, 2 * first : 2 * (first + strip.shape[1]) + 2]
            self._run_strip(inputs, strip)
        out = out.view(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]
        return out.permute(0, 3, 1, 2)

    def _rows_per_strip(self, tiles_per_row: int) -> int:
        floats_per_tile = 16 * (self.in_channels + self.out_channels)
        tiles = max(_STRIP_TILES, _STRIP_FLOATS // floats_per_tile)
        return max(1, tiles // tiles_per_row)

    def _run_strip(self, x: Tensor, out: Tensor) -> None:
        """Rows of tiles: (B, 2 h + 2, 2 w + 2, C) -> ``out`` (B, h, 2, w, 2, D)."""
        batch, rows, columns = out.shape[0], out.shape[1], out.shape[3]
        tiles = x.new_empty(4, 4, batch, rows, columns, x.shape[3])
        lines = [x[:, i : i + 2 * rows - 1 : 2] for i in range(4)]
        for row, line in zip(tiles, _input_combinations(lines), strict=True):
            cells = [line[:, :, i : i + 2 * columns - 1 : 2] for i in range(4)]
            _input_combinations(cells, out=row)
        products = torch.bmm(tiles.view(16, -1, x.shape[3]), self.weight)
        products = products.view(4, 4, batch, rows, columns, -1)
        for i, line in enumerate(_output_combinations(products)):
            for j, cell in enumerate(_output_combinations(line)):
                torch.add(cell, self.bias, out=out[:, :, i, :, j])


def _input_combinations(d: list[Tensor], out: Tensor | None = None) -> list[Tensor]:
    """B^T along one axis: four combinations of four neighbors."""
    places = [None] * 4 if out is None else list(out)
    return [
        torch.sub(d[0], d[2], out=places[0]),
        torch.add(d[1], d[2], out=places[1]),
        torch.sub(d[2], d[1], out=places[2]),
        torch.sub(d[1], d[3], out=places[3]),
    ]


def _output_combinations(m: Tensor) -> tuple[Tensor, Tensor]:
    """A^T along the first axis: (4, ...) -> two results. The second and third of ``m`` are lost."""
    even = m[0] + m[1]
    even += m[2]
    odd = m[1].sub_(m[2])
    odd -= m[3]
    return even, odd


def transform_weight(weight: Tensor) -> Tensor:
    """G g G^T: (D, C, 3, 3) -> (16, C, D)."""
    g = weight.permute(2, 3, 1, 0).contiguous()
    rows = _kernel_combinations(g)
    transformed = _kernel_combinations(rows.transpose(0, 1)).transpose(0, 1)
    return transformed.reshape(16, *g.shape[2:])


def _kernel_combinations(g: Tensor) -> Tensor:
    """G along the first axis: (3, ...) -> (4, ...)."""
    outer, inner = (g[0] + g[2]) / 2, g[1] / 2
    return torch.stack([g[0], outer + inner, outer - inner, g[2]])


def is_suitable(module: nn.Module, min_channels: int = MIN_CHANNELS) -> bool:
    """Whether a module is a convolution that :class:`WinogradConv2d` does, and is faster at."""
    return (
        type(module) is nn.Conv2d
        and (module.kernel_size, module.stride, module.dilation) == ((3, 3), (1, 1), (1, 1))
        and module.padding in ((1, 1), "same")
        and (module.padding_mode, module.groups) == ("zeros", 1)
        and min(module.in_channels, module.out_channels) >= min_channels
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def use_winograd(model: nn.Module, min_channels: int = MIN_CHANNELS) -> int:
    """Replaces the suitable convolutions of a frozen model, in place; returns how many."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if is_suitable(child, min_channels)
    ]
    for parent, name, child in found:
        setattr(parent, name, WinogradConv2d(child))
    return len(found)
