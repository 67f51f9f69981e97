# SPDX-License-Identifier: Apache-2.0
"""Any hierarchical image model of timm with an FPN, built from ``cfg.MODEL.TIMM``.

Features are named by their stride as in Detectron2: ``res2`` (stride 4) to ``res5`` (stride 32);
the FPN over them gives ``p2`` to ``p5``. timm is an optional dependency (extra ``timm``).
"""

import logging
import math
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from person_search.utils.weight_files import read_weights

logger = logging.getLogger(__name__)

_NORMS = ("train", "frozen")
_BOOKKEEPING = ("num_batches_tracked", "relative_position_index", "attn_mask")


class TimmBackbone(Backbone):
    """Wraps a ``features_only`` model of timm as a Detectron2 backbone.

    Args:
        net: Model created by timm with ``features_only=True``.
        out_features: Names of the features to return, for example ``["res3", "res4"]``.
        frozen_stages: Number of leading features whose layers are not trained; -1 or 0: none.
        frozen_norms: Keeps batch norms in eval mode and does not train them.
    """

    def __init__(
        self, net: nn.Module, out_features: list[str], frozen_stages: int, frozen_norms: bool
    ) -> None:
        super().__init__()
        self.net = net
        info = net.feature_info
        reductions, channels = info.reduction(), info.channels()
        # the last feature of each stride
        self._indices = {f"res{int(math.log2(r))}": i for i, r in enumerate(reductions)}
        unknown = [name for name in out_features if name not in self._indices]
        if unknown:
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES names {unknown}, but MODEL.TIMM.NAME provides "
                f"{list(self._indices)} (strides {reductions})."
            )
        self._out_features = out_features
        self._out_feature_strides = {n: reductions[self._indices[n]] for n in out_features}
        self._out_feature_channels = {n: channels[self._indices[n]] for n in out_features}
        self._channels_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")
        self.frozen_norms = frozen_norms
        if frozen_stages > len(reductions):
            raise ValueError(
                f"MODEL.TIMM.FROZEN_STAGES is {frozen_stages}; the model has {len(reductions)} "
                "features."
            )
        if frozen_stages > 0:
            self._freeze_until(info.module_name()[frozen_stages - 1])
        self._freeze_unused(info.module_name()[max(self._indices[n] for n in out_features)])
        if frozen_norms:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.train()

    def _freeze_until(self, module: str) -> None:
        """Freezes all parameters up to and including those of a module, in forward order."""
        names = [name for name, _ in self.net.named_parameters()]
        inside = [i for i, name in enumerate(names) if self._is_in(name, module)]
        last = max(inside, default=-1)
        for _, parameter in list(self.net.named_parameters())[: last + 1]:
            parameter.requires_grad_(False)

    def _freeze_unused(self, module: str) -> None:
        """Freezes the parameters behind the last feature that is returned: they get no gradient."""
        parameters = list(self.net.named_parameters())
        inside = [i for i, (name, _) in enumerate(parameters) if self._is_in(name, module)]
        for _, parameter in parameters[max(inside, default=len(parameters)) + 1 :]:
            parameter.requires_grad_(False)

    @staticmethod
    def _is_in(parameter: str, module: str) -> bool:
        # timm flattens "stages.1" to "stages_1" in some of its wrappers
        return parameter.startswith((f"{module}.", f"{module.replace('.', '_')}."))

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.net.modules() if isinstance(m, _BatchNorm)]

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Sets the mode; frozen norms stay in eval mode."""
        super().train(mode)
        if self.frozen_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Computes the features.

        Args:
            x: Images (B, C, H, W); H and W multiples of ``size_divisibility``.

        Returns:
            Feature name -> (B, C', H / stride, W / stride).
        """
        features = self.net(x)
        outputs = {name: features[self._indices[name]] for name in self._out_features}
        if self._channels_last:
            outputs = {name: value.permute(0, 3, 1, 2) for name, value in outputs.items()}
        return outputs


def create_timm_net(
    name: str, in_chans: int, pretrained: bool, features_only: bool = True
) -> nn.Module:
    """Creates a model of timm.

    Args:
        name: Name of the model, for example ``convnext_base`` or ``pvt_v2_b2.in1k``.
        in_chans: Number of image channels.
        pretrained: Downloads timm's weights.
        features_only: Whether the model returns feature maps. False: a pooled vector.

    Raises:
        ValueError: timm is not installed, or the model is unknown, has no features, or its
            weights cannot be downloaded.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"MODEL.TIMM.NAME is {name!r}, but timm is not installed: pip install timm."
        ) from error
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"MODEL.TIMM.NAME {name!r} is unknown to timm. Similar: {near}.")
    options: dict = {"features_only": True} if features_only else {"num_classes": 0}
    if name.startswith("swin"):
        options["strict_img_size"] = False
    try:
        net = timm.create_model(
            name, pretrained=pretrained, in_chans=in_chans, **options
        )
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"MODEL.TIMM.NAME {name!r} cannot be used as a backbone, timm says: {error}"
        ) from error
    except OSError as error:
        raise ValueError(
            f"MODEL.TIMM.WEIGHTS 'imagenet' could not be downloaded for {name!r}: "
            f"{str(error).splitlines()[0]}. Without a network, give the path of a weights file."
        ) from error
    if not features_only:
        return net
    strides = net.feature_info.reduction()
    if any(math.log2(stride) % 1 for stride in strides) or len(set(strides)) < 2:
        raise ValueError(
            f"MODEL.TIMM.NAME {name!r} provides strides {strides}; an FPN needs strides that "
            "double from stage to stage, such as 4, 8, 16, 32."
        )
    return net


def load_timm_weights(net: nn.Module, path: str) -> str:
    """Loads weights of timm, torchvision or the original authors from a local file.

    Weights are matched by name. If the names differ, they are matched by position, provided that
    the shapes of all weights agree in order; classifiers at the end are ignored.

    Args:
        net: Model to fill.
        path: State dict, see :func:`person_search.utils.weight_files.read_checkpoint`.

    Returns:
        A sentence that says what matched.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The weights belong to another model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"MODEL.TIMM.WEIGHTS {path!r} does not exist.")
    found = {k: v for k, v in read_weights(path).items() if not k.endswith(_BOOKKEEPING)}
    own = {k: v for k, v in net.state_dict().items() if not k.endswith(_BOOKKEEPING)}
    by_name = {_flat(key): value for key, value in found.items()}
    named = {key: by_name[_flat(key)] for key in own if _flat(key) in by_name}
    if len(named) == len(own) and all(named[k].shape == v.shape for k, v in own.items()):
        matched, how = named, "name"
    else:
        values = list(found.values())[: len(own)]
        shapes = [value.shape for value in own.values()]
        if [value.shape for value in values] != shapes:
            wrong = next(
                (k for k, v in own.items() if k not in named or named[k].shape != v.shape), ""
            )
            raise ValueError(
                f"MODEL.TIMM.WEIGHTS {path!r} does not fit the model: {len(named)} of {len(own)} "
                f"weights match by name, the shapes differ in order; first mismatch: {wrong}."
            )
        matched, how = dict(zip(own, values, strict=True)), "position"
    net.load_state_dict(matched, strict=False)
    left = len(found) - len(matched)
    return f"{path}: {len(matched)} weights matched by {how}, {left} of the file not used."


def _flat(name: str) -> str:
    return name.replace(".", "_")


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds a timm model with an FPN over ``cfg.MODEL.FPN.IN_FEATURES``.

    ``MODEL.TIMM.WEIGHTS`` is read only where ``MODEL.WEIGHTS`` is empty: a checkpoint contains the
    whole model.

    Raises:
        FileNotFoundError: The weights file does not exist.
        ValueError: A key of ``MODEL.TIMM`` has a value that cannot be used.
    """
    keys = cfg.MODEL.TIMM
    if keys.NORM not in _NORMS:
        raise ValueError(f"MODEL.TIMM.NORM is {keys.NORM!r}; choose from {', '.join(_NORMS)}.")
    initial = keys.WEIGHTS if not cfg.MODEL.WEIGHTS else ""
    net = create_timm_net(keys.NAME, input_shape.channels, pretrained=initial == "imagenet")
    if initial not in ("", "imagenet"):
        logger.info("%s", load_timm_weights(net, initial))
    strides = net.feature_info.reduction()
    all_features = [f"res{int(math.log2(s))}" for s in dict.fromkeys(strides) if s >= 4]
    in_features = list(cfg.MODEL.FPN.IN_FEATURES) or all_features
    backbone = TimmBackbone(net, in_features, keys.FROZEN_STAGES, keys.NORM == "frozen")
    return FPN(
        bottom_up=backbone,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
