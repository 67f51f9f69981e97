# SPDX-License-Identifier: Apache-2.0
"""Extrapolates operations and memory of the frozen model to image sizes that were not run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from random_diffusion import UNET_CONFIGS, build_unet, build_vae
from torch.utils.flop_counter import FlopCounterMode

from diffps.attention import use_fused_attention
from diffps.hooks import ActivationTap, find_layers, list_layers

_LATENT_STRIDE = 8
_NUM_TOKENS = 77


@dataclass(frozen=True)
class MemoryCurve:
    """Bytes as a polynomial of the number of cells of the latent, fitted to measurements.

    Attributes:
        coefficients: Coefficients of the powers 0, 1 and, with explicit attention, 2.
    """

    coefficients: tuple[float, ...]

    @classmethod
    def fit(
        cls, sides: Sequence[int], measured: Sequence[float], explicit_attention: bool
    ) -> "MemoryCurve":
        """Fits the curve by least squares.

        Args:
            sides: Sides of square images in pixels.
            measured: Bytes at each side.
            explicit_attention: Whether all pairs of cells are in memory.
        """
        cells = _cells(np.asarray(sides, np.float64))
        unit = cells.max()  # scales the powers to similar size, for accuracy
        degree = 2 if explicit_attention else 1
        columns = np.stack([(cells / unit) ** power for power in range(degree + 1)], axis=1)
        solution = np.linalg.lstsq(columns, np.asarray(measured, np.float64), rcond=None)[0]
        return cls(tuple(float(c / unit**power) for power, c in enumerate(solution)))

    def at(self, side: int) -> float:
        """Returns the bytes for a square image of this side in pixels."""
        return sum(c * _cells(side) ** power for power, c in enumerate(self.coefficients))

    @property
    def bytes_per_pair(self) -> float:
        """Bytes for each pair of cells."""
        return self.coefficients[2]

    def from_float32_to_half(self) -> "MemoryCurve":
        """Converts a curve measured in float32 to float16.

        Everything takes half the bytes except the explicit softmax, which autocast computes in
        float32: a score and its probability take 2 + 4 bytes instead of 4 + 4.
        """
        factors = (1 / 2, 1 / 2, 6 / 8)
        return MemoryCurve(tuple(f * c for f, c in zip(factors, self.coefficients, strict=False)))


def _cells(side):
    return (side // _LATENT_STRIDE) ** 2


def frozen_teraflops(family: str, side: int) -> dict[str, float]:
    """Counts operations of VAE, UNet and truncated UNet for one image, in 1e12.

    Args:
        family: Key of ``UNET_CONFIGS``.
        side: Side of the square image in pixels.
    """
    unet, vae = build_unet(family, "meta"), build_vae(family, "meta")
    use_fused_attention(unet)
    tap = ActivationTap(find_layers(["u3r1_k"], list_layers(unet), ""), _LATENT_STRIDE)
    tap.attach(unet)
    size, width = (side // _LATENT_STRIDE,) * 2, UNET_CONFIGS[family]["cross_attention_dim"]
    latents = torch.empty(1, 4, *size, device="meta")
    context = torch.empty(1, _NUM_TOKENS, width, device="meta")

    def run_unet(truncate: bool) -> None:
        with tap.record(size, truncate):
            unet(latents, torch.zeros((), device="meta"), context)

    return {
        "VAE": teraflops(lambda: vae.encoder(torch.empty(1, 3, side, side, device="meta"))),
        "UNet": teraflops(lambda: run_unet(False)),
        "UNet, truncated": teraflops(lambda: run_unet(True)),
    }


def teraflops(function: Callable[[], object]) -> float:
    """Counts operations (2 per multiply-add, in 1e12) of a call, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e12
