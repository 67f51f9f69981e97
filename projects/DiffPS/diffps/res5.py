# SPDX-License-Identifier: Apache-2.0
"""The last stage of a ResNet, applied to RoIs; detection and re-ID have separate ones."""

import os
import re

import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.utils import comm
from torch import Tensor, nn

from diffps.norm import is_empty, no_rows
from person_search.utils.weight_files import read_weights


class Res5(nn.Sequential):
    """Three bottlenecks, the first of stride 2: (N, C, h, w) -> (N, 4 width, h/2, w/2).

    At C = 1024 and width 512 it is ``layer4`` of torchvision's ResNet-50. Its batch norms train.

    It is built with random weights. ImageNet weights are read when training starts, by
    :meth:`load_initial_weights`, so resuming, testing and searching need neither file nor network.

    Args:
        in_channels: C.
        width: Inner channels of the bottlenecks.
        weights: Source of the initial weights, see :func:`read_res5_weights`; empty for random.
    """

    def __init__(self, in_channels: int, width: int, weights: str = "") -> None:
        if in_channels == 4 * width:
            # Detectron2's block then has no convolution on its shortcut, which cannot stride
            raise ValueError(
                f"MODEL.DIFFPS.HEAD.RES5_WIDTH is {width} on maps of {in_channels} channels "
                "(MODEL.DIFFPS.DET_AGG.DIM or MSFRN.DIM); four times the width must differ from it."
            )
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=in_channels,
            bottleneck_channels=width,
            out_channels=4 * width,
            norm="BN",
            stride_in_1x1=False,
        )
        super().__init__(*blocks)
        self.out_channels = 4 * width
        self.initial_weights = weights
        self._is_loaded = False

    @classmethod
    def from_cfg(cls, cfg: CfgNode, in_channels: int) -> "Res5":
        """Builds the stage that ``MODEL.DIFFPS.HEAD`` describes."""
        head = cfg.MODEL.DIFFPS.HEAD
        return cls(in_channels, head.RES5_WIDTH, head.RES5_WEIGHTS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 4 width, h/2, w/2)."""
        if is_empty(x):
            h, w = ((side + 1) // 2 for side in x.shape[-2:])
            return no_rows(self, x, self.out_channels, h, w)
        return super().forward(x)

    def load_initial_weights(self) -> None:
        """Reads the initial weights, unless weights have been loaded from a checkpoint.

        Raises:
            FileNotFoundError: See :func:`read_res5_weights`.
            RuntimeError: See :func:`read_res5_weights`.
            ValueError: If the weights are of another network.
        """
        if not self.initial_weights or self._is_loaded:
            return
        source, weights = self.initial_weights, read_res5_weights(self.initial_weights)
        wanted = {
            name: value
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        wrong = [k for k, v in wanted.items() if k not in weights or weights[k].shape != v.shape]
        if wrong:
            raise ValueError(
                f"MODEL.DIFFPS.HEAD.RES5_WEIGHTS: {source!r} lacks {wrong[:3]} ({len(wrong)} of "
                f"{len(wanted)}) or has them in other shapes. It must be a torchvision ResNet-50, "
                "and MODEL.DIFFPS.HEAD.RES5_WIDTH 512 on feature maps of 1024 channels."
            )
        self.load_state_dict({name: weights[name] for name in wanted}, strict=False)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self._is_loaded |= f"{prefix}0.conv1.weight" in state_dict
        super()._load_from_state_dict(state_dict, prefix, *args)


def read_res5_weights(source: str) -> dict[str, Tensor]:
    """Reads ``layer4`` of a torchvision ResNet.

    Args:
        source: A ``.pth`` or ``.safetensors`` state dict, or "torchvision" to download the
            ImageNet weights (version 1) of ResNet-50.

    Returns:
        State dict of :class:`Res5`.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If the download failed.
    """
    source = os.path.expanduser(source)
    if source == "torchvision":
        state = _download()
    elif not os.path.isfile(source):
        raise FileNotFoundError(
            f"MODEL.DIFFPS.HEAD.RES5_WEIGHTS: there is no file {source!r}. Use 'torchvision' to "
            "download the weights, or '' for random ones (evaluation does not need them)."
        )
    else:
        state = read_weights(source)
    return {
        _our_name(name.removeprefix("layer4.")): value
        for name, value in state.items()
        if name.startswith("layer4.")
    }


def _download() -> dict[str, Tensor]:
    """Downloads ImageNet weights of ResNet-50 in one process per machine."""
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    try:
        if comm.get_local_rank() == 0:
            weights.get_state_dict(progress=True)
        comm.synchronize()
        return weights.get_state_dict(progress=False)
    except OSError as e:  # what urllib raises without a network
        raise RuntimeError(
            "MODEL.DIFFPS.HEAD.RES5_WEIGHTS is 'torchvision', but the weights cannot be downloaded "
            f"({e}). Download {weights.url} on another machine and set the key to the path of the "
            "file, or to '' for random weights."
        ) from e


def _our_name(name: str) -> str:
    """``0.bn1.weight`` -> ``0.conv1.norm.weight``, ``0.downsample.1.bias`` -> ..."""
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")


@ROI_BOX_HEAD_REGISTRY.register()
class Res5BoxHead(nn.Module):
    """Turns pooled RoIs into one vector each: :class:`Res5` and the mean over the cells."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.res5 = Res5.from_cfg(cfg, input_shape.channels)

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of the vectors."""
        return ShapeSpec(channels=self.res5.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 4 width)."""
        return self.res5(x).mean(dim=(2, 3))
