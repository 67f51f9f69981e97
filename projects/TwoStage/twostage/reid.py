# SPDX-License-Identifier: Apache-2.0
"""The second stage: a network that embeds crops.

Shape shorthand: n boxes, D embedding.
"""

import logging

import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import roi_align

from person_search.modeling import CROP_EMBEDDER_REGISTRY
from person_search.modeling.timm_fpn import create_timm_net, load_timm_weights
from twostage.weights import local_file

logger = logging.getLogger(__name__)

_KEY = "MODEL.TWO_STAGE.REID"
_WEIGHTS = "MODEL.TWO_STAGE.REID_WEIGHTS"


class CropEmbedder(nn.Module):
    """Crops boxes from an image and embeds them.

    Args:
        net: Network from crops (n, 3, h, w) to features (n, C).
        channels: C.
        embed_dim: D, or 0 to use the features themselves.
        crop_size: (h, w) of a crop in pixels.
        mean: Mean of the network's RGB input in 0 .. 1.
        std: Standard deviation of the network's RGB input.
        is_bgr: Whether images come in BGR order.
    """

    def __init__(
        self,
        net: nn.Module,
        channels: int,
        *,
        embed_dim: int,
        crop_size: tuple[int, int],
        mean: list[float],
        std: list[float],
        is_bgr: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.project = nn.Linear(channels, embed_dim) if embed_dim else nn.Identity()
        self.embed_dim = embed_dim or channels
        self.crop_size, self.is_bgr = crop_size, is_bgr
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Returns normalized crops (n, 3, h, w).

        Args:
            image: (3, H, W), pixel values 0 .. 255.
            boxes: (n, 4) XYXY pixels of the image.
        """
        image = image.float() / 255
        image = (image.flip(0) if self.is_bgr else image) - self.mean
        rois = [boxes.float()]
        return roi_align(image[None] / self.std, rois, self.crop_size, 1.0, -1, aligned=True)

    def forward(self, images: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Returns unit vectors (n, D) float32 for the boxes of all images, in their order."""
        crops = torch.cat([self.crops(*pair) for pair in zip(images, boxes, strict=True)])
        if len(crops) == 0:
            return crops.new_zeros(0, self.embed_dim)
        return F.normalize(self.project(self.net(crops)).float(), dim=1)


def build_reid(cfg: CfgNode) -> nn.Module:
    """Builds ``MODEL.TWO_STAGE.REID``, a module with the interface of :class:`CropEmbedder`.

    Raises:
        FileNotFoundError: ``REID_WEIGHTS`` names a file that does not exist.
        ValueError: The network is unknown, its library is missing, or its weights do not fit.
    """
    two = cfg.MODEL.TWO_STAGE
    initial = two.REID_WEIGHTS if not cfg.MODEL.WEIGHTS else ""
    if two.REID in CROP_EMBEDDER_REGISTRY:
        return CROP_EMBEDDER_REGISTRY.get(two.REID)(cfg, initial)
    source, _, name = two.REID.partition("/")
    builders = {"timm": _timm_net, "torchvision": _torchvision_net, "torchreid": _torchreid_net}
    if source not in builders:
        raise ValueError(
            f"{_KEY} is {two.REID!r}; it must be 'timm/<name>', 'torchvision/<name>', "
            f"'torchreid/<name>' or one of {sorted(key for key, _ in CROP_EMBEDDER_REGISTRY)}."
        )
    try:
        net, channels = builders[source](name, initial == "imagenet")
    except ImportError as error:
        raise ValueError(
            f"{_KEY} is {two.REID!r}, but {source} cannot be imported ({error}): "
            f"pip install 'person-search[{source}]'."
        ) from error
    except OSError as error:
        raise ValueError(
            f"{_WEIGHTS} 'imagenet' could not be downloaded: {error}. Without a network, give the "
            "path of a state dict."
        ) from error
    if initial not in ("", "imagenet"):
        model, path = name if source == "timm" else "", local_file(initial, _WEIGHTS)
        logger.info("%s", load_timm_weights(net, path, model, _WEIGHTS))
    return CropEmbedder(
        net,
        channels,
        embed_dim=cfg.MODEL.REID.EMBED_DIM if two.PROJECT else 0,
        crop_size=tuple(two.CROP_SIZE),
        mean=two.REID_MEAN,
        std=two.REID_STD,
        is_bgr=cfg.INPUT.FORMAT == "BGR",
    )


def _timm_net(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    net = create_timm_net(name, pretrained=pretrained, features_only=False, key=_KEY)
    return net, getattr(net, "head_hidden_size", net.num_features)


def _torchvision_net(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise ValueError(f"{_KEY} is 'torchvision/{name}'; torchvision has {', '.join(known)}.")
    net = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    for part in net.modules():
        for child, layer in part.named_children():
            if layer is last:
                setattr(part, child, nn.Identity())
    return net, last.in_features


def _torchreid_net(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    from torchreid.reid import models

    net = models.build_model(name, num_classes=1, loss="softmax", pretrained=pretrained)
    net.classifier = nn.Identity()  # in training mode, too, the output is the feature
    return net, net.feature_dim
