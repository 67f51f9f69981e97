# SPDX-License-Identifier: Apache-2.0
"""Backbones of the teachers, from torchvision, timm or Detectron2's registry.

Shape shorthand in this file: n crops, C channels, (h, w) size of the last feature map.
"""

import logging
from pathlib import Path

import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ResNet
from torch import Tensor, nn

from person_search.modeling.timm_fpn import create_timm_net, import_timm, load_timm_weights
from person_search.utils.weight_files import read_weights
from psdiff.config import check_choice

logger = logging.getLogger(__name__)

_KEY = "MODEL.PSDIFF.TEACHER.BACKBONE"
_WEIGHTS = "MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS"
# Layers of classification networks after the last feature map.
_CLASSIFIERS = ("fc.", "head.", "classifier.", "last_linear.")


class StagedBackbone(nn.Module):
    """A residual network with access to its stem and stages.

    Args:
        stem: First layers.
        stages: Stages by name, each a sequence of blocks.
        channels: Output channels of each stage; the last one is C.
        as_detector: The names of the weights are those of a Detectron2 backbone.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: dict[str, nn.Sequential],
        channels: list[int],
        as_detector: bool = False,
    ) -> None:
        super().__init__()
        self.stem = stem
        for name, stage in stages.items():
            self.add_module(name, stage)
        self._names, self.stage_channels, self.as_detector = list(stages), channels, as_detector

    @property
    def channels(self) -> int:
        """Channels C of the feature map."""
        return self.stage_channels[-1]

    @property
    def stages(self) -> list[nn.Sequential]:
        """Stages in order."""
        return [getattr(self, name) for name in self._names]

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, H, W) normalized pixels -> (n, C, h, w)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


class WholeBackbone(nn.Module):
    """A network without access to its stages; its output is converted to one feature map.

    Args:
        net: Network of timm (``forward_features`` is called) or a Detectron2 backbone.
        channels: Channels C of the feature map.
        grid: Grid size (h, w), for networks that return a list of tokens.
    """

    def __init__(self, net: nn.Module, channels: int, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.net, self.channels, self.grid = net, channels, grid
        self.as_detector = False

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, H, W) normalized pixels -> (n, C, h, w)."""
        if isinstance(self.net, Backbone):
            shapes = self.net.output_shape()
            return self.net(x)[max(shapes, key=lambda name: shapes[name].stride)]
        y = self.net.forward_features(x)
        if y.dim() == 3:  # tokens; prefix tokens have no position in the image
            y = y[:, getattr(self.net, "num_prefix_tokens", 0) :].transpose(1, 2)
            return y.unflatten(2, self.grid or (-1, 1))
        return y if y.shape[1] == self.channels else y.permute(0, 3, 1, 2)


def build_teacher_backbone(
    cfg: CfgNode, last_stride: int | None = None
) -> StagedBackbone | WholeBackbone:
    """Builds ``cfg.MODEL.PSDIFF.TEACHER.BACKBONE`` with its initial weights.

    Args:
        cfg: Config with ``MODEL.PSDIFF.TEACHER``.
        last_stride: Stride of the last stage, 1 or 2. Default: ``TEACHER.LAST_STRIDE``.

    Raises:
        ValueError: If the name is unknown or the weights do not fit.
        FileNotFoundError: If the file of weights does not exist.
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    source, _, name = teacher.BACKBONE.rpartition("/")
    builders = {"torchvision": _from_torchvision, "timm": _from_timm, "": _from_registry}
    if source not in builders:
        raise ValueError(
            f"{_KEY} is '{teacher.BACKBONE}'; it must be 'torchvision/<name>', 'timm/<name>' or a "
            "name in Detectron2's BACKBONE_REGISTRY."
        )
    backbone = builders[source](name, cfg)
    stride = teacher.LAST_STRIDE if last_stride is None else last_stride
    check_choice("TEACHER.LAST_STRIDE", stride, (1, 2))
    if stride == 1 and isinstance(backbone, StagedBackbone):
        remove_stride(backbone.stages[-1])
    elif stride == 1:
        logger.warning("%s has no stages: it keeps its own last stride.", teacher.BACKBONE)
    return backbone


def remove_stride(stage: nn.Sequential) -> None:
    """Changes each stride 2 in the first block of a stage to 1."""
    for module in stage[0].modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
        if isinstance(module, nn.AvgPool2d) and module.stride in (2, (2, 2)):
            module.kernel_size = module.stride = 1  # shortcut of ResNet-D, without pooling


def require_stages(backbone: nn.Module, method: str) -> StagedBackbone:
    """Returns the backbone; raises ValueError unless it has at least two accessible stages."""
    if isinstance(backbone, StagedBackbone) and len(backbone.stages) > 1:
        return backbone
    raise ValueError(
        f"The teacher '{method}' needs a backbone ({_KEY}) with two or more accessible stages, for "
        "example 'torchvision/resnet50', another ResNet of torchvision or timm, or "
        "'build_slim_resnet_backbone'."
    )


# ---- sources -------------------------------------------------------------------------------------


def _from_torchvision(name: str, cfg: CfgNode) -> StagedBackbone:
    weights = cfg.MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS
    known = torchvision.models.list_models(torchvision.models)
    resnets = [n for n in known if n.startswith(("resnet", "resnext", "wide_resnet"))]
    if name not in resnets:
        raise ValueError(
            f"{_KEY} is 'torchvision/{name}', but only the residual networks of torchvision are "
            f"supported: {', '.join(resnets)}. Use 'timm/<name>' for others."
        )
    net = torchvision.models.get_model(name, weights="DEFAULT" if weights == "imagenet" else None)
    _load_local(net, weights)
    return _stages_of(net, nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool))


def _from_timm(name: str, cfg: CfgNode) -> StagedBackbone | WholeBackbone:
    teacher, wanted = cfg.MODEL.PSDIFF.TEACHER, cfg.MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS
    known = import_timm(name, _KEY).get_pretrained_cfg(name)
    size: dict = {"img_size": tuple(teacher.CROP_SIZE)} if known and known.fixed_input_size else {}
    net = create_timm_net(
        name, pretrained=wanted == "imagenet", features_only=False, key=_KEY, **size
    )
    if wanted not in ("", "imagenet"):
        _require_file(wanted)
        logger.info("%s", load_timm_weights(net, wanted, name, _WEIGHTS))
    if all(hasattr(net, part) for part in ("conv1", "bn1", "maxpool", "layer4")):
        return _stages_of(net, nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool))
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    return WholeBackbone(net, net.num_features, grid)


def _stages_of(net: nn.Module, stem: nn.Module) -> StagedBackbone:
    stages = {f"res{i + 1}": getattr(net, f"layer{i}") for i in range(1, 5)}
    # The last convolution of a block (bottleneck: conv3, basic: conv2) has its output channels.
    blocks = [stage[-1] for stage in stages.values()]
    channels = [getattr(block, "conv3", block.conv2).out_channels for block in blocks]
    return StagedBackbone(stem, stages, channels)


def _from_registry(name: str, cfg: CfgNode) -> StagedBackbone | WholeBackbone:
    if name not in BACKBONE_REGISTRY:
        known = sorted(known for known, _ in BACKBONE_REGISTRY)
        raise ValueError(
            f"{_KEY} is '{name}', which is not in BACKBONE_REGISTRY; available: {known}, and "
            "'torchvision/<name>', 'timm/<name>'."
        )
    net = BACKBONE_REGISTRY.get(name)(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    if cfg.MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS == "imagenet":
        raise ValueError(
            f"MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS 'imagenet' is for torchvision and timm; set it "
            f"to a file for '{name}'."
        )
    _load_local(net, cfg.MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS)
    if isinstance(net, ResNet):
        stages = dict(zip(net.stage_names, net.stages, strict=True))
        channels = [stage[-1].out_channels for stage in net.stages]
        return StagedBackbone(net.stem, stages, channels, as_detector=True)
    shapes = net.output_shape()
    return WholeBackbone(net, max(shapes.values(), key=lambda shape: shape.stride).channels)


def _load_local(net: nn.Module, path: str) -> None:
    """Loads a state dict from disk; the weights of a classifier are optional and ignored."""
    if path in ("", "imagenet"):
        return
    _require_file(path)
    try:
        state = read_weights(path)
        own = net.state_dict()
        missing = [k for k in own if k not in state and not k.startswith(_CLASSIFIERS)]
        missing = [k for k in missing if not k.endswith("num_batches_tracked")]
        if missing:
            raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
        fitting = {k: v for k, v in state.items() if k in own and not k.startswith(_CLASSIFIERS)}
        net.load_state_dict(fitting, strict=False)
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{_WEIGHTS}: '{path}' does not fit {_KEY}: {error}") from error


def _require_file(path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{_WEIGHTS} is '{path}', which is not a file. Allowed: '' (random), 'imagenet' "
            "(download), or the path of a state dict, .pth or .safetensors."
        )
