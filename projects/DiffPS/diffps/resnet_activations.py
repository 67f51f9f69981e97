# SPDX-License-Identifier: Apache-2.0
"""DiffPS without a prior: a trainable ResNet with FPN replaces the frozen diffusion model.

It returns activations of the same names, strides and channels, so all other parts are unchanged. It
is trained from random weights. It has no attention map, so ``MODEL.DIFFPS.DGRPN.ENABLED`` must be
False, and no text: the text vectors of SFAN are fixed random directions, to which
``MODEL.DIFFPS.SFAN.PROJECT`` learns to map.

Shape shorthand: B images, (H, W) pixels of the batch, C channels.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from person_search.modeling import build_slim_resnet_fpn_backbone

_LEVELS = {1: "p5", 2: "p4", 3: "p3"}
"""Up-level of a Stable Diffusion 1 or 2 UNet -> the level of an FPN of the same stride."""


@BACKBONE_REGISTRY.register()
class ResNetActivations(Backbone):
    """The slim ResNet with FPN of the shared core, and a 1x1 convolution per activation.

    Args:
        trunk: Backbone with ``p3``, ``p4`` and ``p5``, strides 8, 16 and 32.
        out_features: Names such as ``u2r1_v``; the digit after u selects the level.
        channels: Channels of the activations of up-levels 1 to 3.
        text_dim: Length of the vectors that replace text vectors.
    """

    size_divisibility = 64

    @configurable
    def __init__(
        self,
        *,
        trunk: Backbone,
        out_features: Sequence[str],
        channels: Sequence[int],
        text_dim: int,
    ) -> None:
        super().__init__()
        self.trunk, self.text_dim = trunk, text_dim
        self._level_of = {name: _LEVELS[_up_level(name)] for name in out_features}
        shapes = trunk.output_shape()
        self._out_features = list(out_features)
        self._out_feature_channels = {n: channels[_up_level(n) - 1] for n in out_features}
        self._out_feature_strides = {n: shapes[self._level_of[n]].stride for n in out_features}
        self.project = nn.ModuleDict(
            {
                name: Conv2d(
                    shapes[self._level_of[name]].channels,
                    self._out_feature_channels[name],
                    kernel_size=1,
                    bias=False,
                )
                for name in out_features
            }
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Returns the arguments of the constructor."""
        resnet = cfg.MODEL.DIFFPS.RESNET
        if len(resnet.CHANNELS) != len(_LEVELS):
            raise ValueError(
                f"MODEL.DIFFPS.RESNET.CHANNELS is {list(resnet.CHANNELS)}; it must have three "
                "entries, for up-levels 1, 2 and 3."
            )
        if cfg.MODEL.DIFFPS.DGRPN.ENABLED:
            raise ValueError(
                "ResNetActivations has no attention map: set MODEL.DIFFPS.DGRPN.ENABLED False."
            )
        return {
            "trunk": build_slim_resnet_fpn_backbone(cfg, input_shape),
            "out_features": list(cfg.MODEL.DIFFPS.BACKBONE.OUT_FEATURES),
            "channels": list(resnet.CHANNELS),
            "text_dim": resnet.TEXT_DIM,
        }

    def word_vectors(self, words: Sequence[str]) -> Tensor:
        """Returns fixed random directions, (n, ``text_dim``) of unit length."""
        generator = torch.Generator().manual_seed(0)
        return F.normalize(torch.randn(len(words), self.text_dim, generator=generator), dim=1)

    def forward(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> dict[str, Tensor]:
        """Runs the network.

        Args:
            images: (B, 3, H, W) RGB in [-1, 1].
            image_sizes: Ignored; see :class:`diffps.backbone.DiffusionBackbone`.
            keys: Ignored.

        Returns:
            Name -> (B, C, H / stride, W / stride).
        """
        # to whole cells of the coarsest activation, as in the diffusion model
        height, width = (-(-n // 64) * 64 for n in images.shape[2:])
        return self.compute(
            F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
        )

    def compute(self, images: Tensor, size: Tensor | None = None) -> dict[str, Tensor]:
        """See :meth:`diffps.backbone.DiffusionBackbone.compute`."""
        levels = self.trunk(images)
        return {name: self.project[name](levels[self._level_of[name]]) for name in self.project}


def _up_level(name: str) -> int:
    """``u2r1_v`` -> 2."""
    match = re.fullmatch(r"u([123])r\d+_\w+", name)
    if match is None:
        raise ValueError(
            f"MODEL.DIFFPS.BACKBONE.OUT_FEATURES: ResNetActivations only replaces activations of "
            f"up-levels 1 to 3 (u1r2_q, u3r0_k, ...), not {name!r}."
        )
    return int(match[1])
