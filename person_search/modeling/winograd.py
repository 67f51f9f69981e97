# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions with up to 4 times fewer multiplications, for frozen float32 models on a CPU.

Shape shorthand: B images, C and D channels in and out, (H, W) cells, m outputs and n = m + 2 inputs
along a side of a tile, T tiles.

Winograd's F(m x m, 3 x 3) computes a tile of m x m outputs from n x n inputs d as
``A^T [(G g G^T) * (B^T d B)] A``, with n^2 products instead of 9 m^2: 2.25 times fewer for m = 2,
4 times fewer for m = 4. Summed over channels, each of the n^2 positions is a matrix product
(T, C) x (C, D). The weights are constant, so ``G g G^T`` is computed once; it takes n^2 / 9 of the
memory, 1.8 or 4 times as much. The relative error of the result is 4e-7 (m = 2) or 3e-6 (m = 4),
that of a direct convolution 3e-7.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, arXiv 1509.09308.
It is used neither on GPUs, where cuDNN has such algorithms, nor in half precision.
"""

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

MIN_CHANNELS = 128
"""Below, the additions and copies take longer than the multiplications that are saved."""

WIDE_CHANNELS = 1024
"""From here on m = 2: such maps are small, so reading the weights dominates, and most weights of a
UNet are in these layers."""

_STRIP_TILES = 128  # at a time: fewer slow down the matrix products, more exceed the caches

# Columns: inputs of a tile; kernel; transformed inputs. For m = 4 the polynomials are evaluated at
# 0, 1, -1, 2, -2 and infinity, for m = 2 at 0, 1, -1 and infinity.
_INPUT = {  # B^T
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
_KERNEL = {  # G
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
_OUTPUT = {  # A^T
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}


class WinogradConv2d(nn.Module):
    """A frozen 3x3 convolution with stride 1 and zero padding of 1, without a backward pass.

    Args:
        conv: Convolution that :func:`is_suitable`; it is not changed.
        tile: m, 2 or 4. Default: by the number of channels.
    """

    input_matrix: Tensor
    output_matrix: Tensor

    def __init__(self, conv: nn.Conv2d, tile: int | None = None) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        wide = min(self.in_channels, self.out_channels) >= WIDE_CHANNELS
        self.tile = tile or (2 if wide else 4)
        weight = transform_weight(conv.weight.detach(), self.tile)
        self.weight = nn.Parameter(weight, requires_grad=False)
        bias = weight.new_zeros(weight.shape[2]) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("input_matrix", weight.new_tensor(_INPUT[self.tile]), False)
        self.register_buffer("output_matrix", weight.new_tensor(_OUTPUT[self.tile]), False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W), with the channels last in memory."""
        batch, _, height, width = x.shape
        m = self.tile
        rows, columns = -(-height // m), -(-width // m)
        x, right = x.permute(0, 2, 3, 1), 1 + columns * m - width
        out = x.new_empty(batch, rows, m, columns, m, self.out_channels)
        step = max(1, _STRIP_TILES // (batch * columns))
        for first in range(0, rows, step):
            strip = out[:, first : first + step]
            # one cell of padding, and the part of the last tiles beyond the map
            top, bottom = m * first - 1, m * (first + strip.shape[1]) + 1
            inputs = x[:, max(top, 0) : bottom]
            padding = (0, 0, 1, right, max(-top, 0), max(bottom - height, 0))
            self._run_strip(F.pad(inputs, padding), strip)
        out = out.view(batch, m * rows, m * columns, -1)[:, :height, :width]
        # the crop is copied, because later layers are slower on a view of a larger map
        return out.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _run_strip(self, x: Tensor, out: Tensor) -> None:
        """Computes rows of tiles: (B, m h + 2, m w + 2, C) -> ``out`` (B, h, m, w, m, D)."""
        m, n = self.tile, self.tile + 2
        batch, rows, columns, channels = out.shape[0], out.shape[1], out.shape[3], x.shape[3]
        lines = torch.stack([x[:, i : i + m * (rows - 1) + 1 : m] for i in range(n)])
        lines = (self.input_matrix @ lines.view(n, -1)).view(n, batch, rows, -1, channels)
        tiles = [lines[:, :, :, i : i + m * (columns - 1) + 1 : m] for i in range(n)]
        d = self.input_matrix @ torch.stack(tiles, dim=1).view(n, n, -1)
        products = torch.bmm(d.view(n * n, -1, channels), self.weight)
        results = self.output_matrix @ products.view(n, n, -1)
        results = self.output_matrix @ results.view(n, -1)
        results = results.view(m, m, batch, rows, columns, -1)
        torch.add(results.permute(2, 3, 0, 4, 1, 5), self.bias, out=out)


def transform_weight(weight: Tensor, tile: int) -> Tensor:
    """Computes G g G^T: (D, C, 3, 3) -> (n^2, C, D)."""
    # in float64, because sixths are not binary fractions; the result is rounded once
    g = torch.tensor(_KERNEL[tile], dtype=torch.float64, device=weight.device)
    transformed = torch.einsum("ia,dcab,jb->ijcd", g, weight.double(), g)
    return transformed.flatten(0, 1).to(weight.dtype).contiguous()


def is_suitable(module: nn.Module, min_channels: int = MIN_CHANNELS) -> bool:
    """Returns whether :class:`WinogradConv2d` can replace a module and is faster."""
    return (
        type(module) in (nn.Conv2d, Conv2d)
        and getattr(module, "norm", None) is None
        and getattr(module, "activation", None) is None
        and (module.kernel_size, module.stride, module.dilation) == ((3, 3), (1, 1), (1, 1))
        and module.padding in ((1, 1), "same")
        and (module.padding_mode, module.groups) == ("zeros", 1)
        and min(module.in_channels, module.out_channels) >= min_channels
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def use_winograd(model: nn.Module, min_channels: int = MIN_CHANNELS) -> int:
    """Replaces the suitable convolutions of a frozen model, in place; returns their number."""
    found = {
        child: WinogradConv2d(child)
        for child in model.modules()
        if is_suitable(child, min_channels)
    }
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in found:
                setattr(parent, name, found[child])
        for value in vars(parent).values():
            if isinstance(value, list):  # Detectron2's FPN calls its layers from lists
                value[:] = [found.get(x, x) if isinstance(x, nn.Module) else x for x in value]
    return len(found)
