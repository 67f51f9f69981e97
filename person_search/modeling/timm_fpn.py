# SPDX-License-Identifier: Apache-2.0
"""Any hierarchical image model of timm with an FPN, built from ``cfg.MODEL.TIMM``.

Features are named by their stride as in Detectron2: ``res2`` (stride 4) to ``res5`` (stride 32);
the FPN over them gives ``p2`` to ``p5``. timm is an optional dependency (extra ``timm``).
"""

import copy
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from person_search.modeling.swin_weights import to_official_names, to_timm_names
from person_search.utils.weight_files import read_weights

logger = logging.getLogger(__name__)

_NORMS = ("train", "frozen", "sync")
_BOOKKEEPING = ("num_batches_tracked", "relative_position_index", "attn_mask")


class TimmBackbone(Backbone):
    """Wraps a ``features_only`` model of timm as a Detectron2 backbone.

    Args:
        net: Model created by timm with ``features_only=True``.
        out_features: Names of the features to return, for example ``["res3", "res4"]``.
        frozen_stages: Number of leading features whose layers are not trained; -1 or 0: none.
        frozen_norms: Keeps batch norms in eval mode and does not train them.
        out_norm: Norm of each returned feature, see ``detectron2.layers.get_norm``; "" for none.
    """

    def __init__(
        self,
        net: nn.Module,
        out_features: list[str],
        frozen_stages: int = 0,
        frozen_norms: bool = False,
        out_norm: str = "",
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
        self.out_norms = nn.ModuleDict(
            {n: get_norm(out_norm, self._out_feature_channels[n]) for n in out_features if out_norm}
        )
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

    @torch.no_grad()
    def fold_norms(self, fold: Callable[[nn.Conv2d, nn.Module], bool]) -> int:
        """Folds batch norms into the convolutions before them, in place.

        timm's blocks register a norm right behind its convolution. Whether they run in that order
        is checked on noise; otherwise, nothing is folded.

        Args:
            fold: Folds a norm into a convolution; returns whether it could.

        Returns:
            Number of folded norms.
        """
        if not self._norms():
            return 0
        original, folded = copy.deepcopy(self.net), 0
        for block in list(self.net.modules()):
            for (_, conv), (name, norm) in pairwise(list(block.named_children())):
                if isinstance(conv, nn.Conv2d) and fold(conv, norm):
                    # norms of timm contain the activation
                    rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
                    setattr(block, name, nn.Sequential(*rest))
                    folded += 1
        if not folded:
            return 0
        noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        noise = noise.to(next(self.net.parameters()))
        try:
            pairs = zip(self.net(noise), original(noise), strict=True)
            equal = all(torch.allclose(a, b, 1e-3, 1e-3 * float(b.abs().max())) for a, b in pairs)
        except (AssertionError, RuntimeError):  # a model for images of one size
            equal = False
        if not equal:
            self.net, folded = original, 0
        return folded

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
        return outputs | {name: norm(outputs[name]) for name, norm in self.out_norms.items()}


def import_timm(name: str, key: str = "MODEL.TIMM.NAME") -> ModuleType:
    """Returns the module ``timm``, which has a model of this name.

    Args:
        name: Name of the model, for example ``convnext_base`` or ``pvt_v2_b2.in1k``.
        key: Config key of the name, for error messages.

    Raises:
        ValueError: timm is not installed, or the model is unknown.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"{key} is {name!r}, but timm is not installed: pip install 'person-search[timm]'."
        ) from error
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=5) or "none"
        raise ValueError(f"{key} {name!r} is unknown to timm. Similar: {near}.")
    return timm


def create_timm_net(
    name: str,
    in_chans: int = 3,
    pretrained: bool = False,
    features_only: bool = True,
    key: str = "MODEL.TIMM.NAME",
    **options: Any,
) -> nn.Module:
    """Creates a model of timm.

    Args:
        name: Name of the model.
        in_chans: Number of image channels.
        pretrained: Downloads timm's weights.
        features_only: Whether the model returns feature maps. False: a pooled vector.
        key: Config key of the name, for error messages.
        **options: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: timm is not installed, or the model is unknown, cannot be used as a backbone, or
            its weights cannot be downloaded.
    """
    timm = import_timm(name, key)
    options |= {"features_only": True} if features_only else {"num_classes": 0}
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # not one line for each of its attempts
    try:
        try:  # Swin Transformers accept images of one size only by default
            net = timm.create_model(
                name, pretrained=pretrained, in_chans=in_chans, strict_img_size=False, **options
            )
        except TypeError:
            net = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **options)
        if features_only:
            _check_features(net, in_chans)
    except OSError as error:
        raise ValueError(
            f"{key} {name!r}: the weights 'imagenet' could not be downloaded: "
            f"{str(error).splitlines()[0]} Without a network, give the path of a weights file."
        ) from error
    except (RuntimeError, AttributeError, TypeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{key} {name!r} cannot be used as a backbone: {str(error).splitlines()[0]}"
        ) from error
    finally:
        hub.setLevel(level)
    return net


@torch.no_grad()
def _check_features(net: nn.Module, in_chans: int) -> None:
    """Raises ValueError unless the strides double and images of any size are accepted."""
    strides = net.feature_info.reduction()
    if any(math.log2(stride) % 1 for stride in strides) or len(set(strides)) < 2:
        raise ValueError(
            f"it provides strides {strides}; an FPN needs strides that double from stage to stage, "
            "such as 4, 8, 16, 32."
        )
    net.eval()(torch.zeros(1, in_chans, 2 * max(strides), 3 * max(strides)))
    net.train()


def load_timm_weights(
    net: nn.Module, path: str, name: str = "", key: str = "MODEL.TIMM.WEIGHTS"
) -> str:
    """Loads weights of timm, torchvision or the original authors from a local file.

    Weights are matched by name, then by the names that the layout of another source is converted
    to, then by position, provided that kinds (weight, bias, ...) and shapes agree in order.
    Weights that the model lacks, such as a classifier, are ignored.

    Args:
        net: Model to fill.
        path: State dict, see :func:`person_search.utils.weight_files.read_checkpoint`.
        name: Name of the model in timm, for the conversions that timm has.
        key: Config key of the path, for error messages.

    Returns:
        A sentence that says what matched.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The weights belong to another model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{key} {path!r} does not exist.")
    weights = _without_bookkeeping(read_weights(path))
    own = _without_bookkeeping(net.state_dict())
    for how, layout in _layouts(weights, name):
        found = {_flat(k): v for k, v in layout.items()}
        if all(_flat(k) in found and found[_flat(k)].shape == v.shape for k, v in own.items()):
            matched, by = {k: found[_flat(k)] for k in own}, how
            break
    else:
        first = dict(list(weights.items())[: len(own)])
        if _kinds(first) != _kinds(own):
            found = {_flat(k): v for k, v in weights.items()}
            fits = [_flat(k) in found and found[_flat(k)].shape == v.shape for k, v in own.items()]
            raise ValueError(
                f"{key} {path!r} does not fit the model: {sum(fits)} of {len(own)} weights match "
                "by name, and the shapes differ in order; first mismatch: "
                f"{list(own)[fits.index(False)]}."
            )
        matched, by = dict(zip(own, first.values(), strict=True)), "position"
    net.load_state_dict(matched, strict=False)
    left = len(weights) - len(matched)
    return f"{path}: {len(matched)} weights matched by {by}, {left} of the file not used."


def _layouts(weights: dict[str, Tensor], name: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields the weights under their own names, then under those that conversions give them."""
    yield "name", weights
    with suppress(ValueError):  # Swin V2
        official = to_official_names(weights)
        if official is not None:
            yield "name (Swin layout converted)", to_timm_names(official)
    if name:
        timm = import_timm(name)
        family = sys.modules[timm.model_entrypoint(name.split(".")[0]).__module__]
        convert = getattr(family, "checkpoint_filter_fn", None)
        if convert is not None:
            with suppress(Exception):  # written for certain layouts, it may fail on others
                yield "name (converted by timm)", convert(dict(weights), timm.create_model(name))


def _without_bookkeeping(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if not k.endswith(_BOOKKEEPING)}


def _kinds(weights: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
    return [(k.rpartition(".")[2], v.shape) for k, v in weights.items()]


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
    net = create_timm_net(
        keys.NAME,
        input_shape.channels,
        pretrained=initial == "imagenet",
        **({"drop_path_rate": keys.DROP_PATH} if keys.DROP_PATH else {}),
    )
    if initial not in ("", "imagenet"):
        logger.info("%s", load_timm_weights(net, initial, keys.NAME))
    if keys.NORM == "sync":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if keys.ACTIVATION_CHECKPOINT:
        net.set_grad_checkpointing(True)
    strides = net.feature_info.reduction()
    all_features = [f"res{int(math.log2(s))}" for s in dict.fromkeys(strides) if s >= 4]
    in_features = list(cfg.MODEL.FPN.IN_FEATURES) or all_features
    backbone = TimmBackbone(
        net, in_features, keys.FROZEN_STAGES, keys.NORM == "frozen", keys.OUT_NORM
    )
    return FPN(
        bottom_up=backbone,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
