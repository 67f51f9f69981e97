# SPDX-License-Identifier: Apache-2.0
"""Base class of the teacher networks: crops to unit embeddings, weights to and from a file.

Shape shorthand in this file: n crops, C channels of a pooled feature, D embedding dimension.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from person_search.utils.model_card import ModelCard
from person_search.utils.weight_files import WeightFileError, read_weights, save_weights
from psdiff.teachers.backbones import build_teacher_backbone


@dataclass(frozen=True)
class TeacherFeatures:
    """Features of n crops for the losses.

    Attributes:
        before_neck: Projected features (n, D), for losses on distances.
        after_neck: Features (n, D) after batch norm, for classification and embeddings.
        whole: Features of whole persons, (n, C) each.
        reduced: Reduced features of whole persons, (n, PART_DIM) each.
        parts: Features of parts of persons, (n, C or PART_DIM) each.
    """

    before_neck: Tensor
    after_neck: Tensor
    whole: tuple[Tensor, ...] = ()
    reduced: tuple[Tensor, ...] = ()
    parts: tuple[Tensor, ...] = ()

    @property
    def embedding(self) -> Tensor:
        """Embeddings (n, D) of unit norm."""
        return F.normalize(self.after_neck, dim=1)


class TeacherNet(nn.Module):
    """Base class of all teachers. Subclasses compute pooled features and pass them to :meth:`head`.

    The head is a linear layer without bias to D dimensions and a batch norm, the "BN neck" of the
    strong baseline; in inference its output is L2-normalized.

    Crops are uint8 or float tensors (n, 3, H, W) in 0..255, channels as ``cfg.INPUT.FORMAT``.
    """

    neck_bias = True
    """The batch norm has a trainable bias; not in the strong baseline."""

    last_stride: int | None = None
    """Stride of the last stage of the backbone. Default: ``TEACHER.LAST_STRIDE``."""

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        pooled_dim: int,
        embed_dim: int,
        crop_size: tuple[int, int],
        pixel_mean: list[float],
        pixel_std: list[float],
        recipe: str = "",
    ) -> None:
        """Builds the head.

        Args:
            backbone: Backbone, (n, 3, H, W) -> feature map.
            pooled_dim: Input dimension of the head.
            embed_dim: Embedding dimension D.
            crop_size: Size (h, w) of the crops.
            pixel_mean: Mean of each channel.
            pixel_std: Standard deviation of each channel.
            recipe: Settings besides the weights that determine the embeddings, included in
                :meth:`weights_hash`.
        """
        super().__init__()
        self.backbone = backbone
        height, width = crop_size
        self.crop_size, self.recipe = (height, width), recipe
        self.project = nn.Linear(pooled_dim, embed_dim, bias=False)
        self.neck = nn.BatchNorm1d(embed_dim)
        self.neck.bias.requires_grad_(self.neck_bias)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        nn.init.kaiming_normal_(self.project.weight, mode="fan_out")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the arguments of ``__init__``."""
        teacher = cfg.MODEL.PSDIFF.TEACHER
        backbone = build_teacher_backbone(cfg, cls.last_stride)
        return {
            "backbone": backbone,
            "pooled_dim": backbone.channels,
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "crop_size": teacher.CROP_SIZE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "recipe": _recipe(cfg),
        }

    def describe(self, crops: Tensor) -> TeacherFeatures:
        """Computes all features of crops (n, 3, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} must implement describe()")

    def forward(self, crops: Tensor) -> Tensor:
        """Embeds crops (n, 3, H, W); returns (n, D) of unit norm, also for n = 0."""
        if len(crops) == 0:
            return self.pixel_mean.new_zeros(0, self.neck.num_features)
        return self.describe(crops).embedding

    def normalized(self, crops: Tensor) -> Tensor:
        """Normalizes pixels 0..255."""
        return (crops.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def head(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Maps pooled features (n, C) to (n, D) before and after the neck."""
        before = self.project(pooled)
        return before, self.neck(before)

    def weights_hash(self) -> str:
        """Returns a short hash of weights and recipe, which is stored with the embeddings."""
        digest = hashlib.sha256(self.recipe.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(
        self, path: str, source: dict[str, str] | None = None, card: ModelCard | None = None
    ) -> None:
        """Writes the weights as safetensors with the metadata ``source`` and a model card."""
        save_weights(path, self.state_dict(), card, source)

    def load(self, path: str) -> None:
        """Reads weights written by :meth:`save`.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is damaged or of another architecture.
        """
        try:
            self.load_state_dict(read_weights(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"MODEL.PSDIFF.TEACHER.WEIGHTS is '{path}', which is not a file. Train a teacher "
                "with projects/PSDiff/tools/train_teacher.py."
            ) from error
        except (RuntimeError, WeightFileError) as error:
            raise ValueError(
                f"MODEL.PSDIFF.TEACHER.WEIGHTS: '{path}' does not fit the teacher of this config "
                "(MODEL.PSDIFF.TEACHER.NAME and BACKBONE, MODEL.SLIM_RESNET, MODEL.REID.EMBED_DIM):"
                f" {error}"
            ) from error


def _recipe(cfg: CfgNode) -> str:
    """Returns the settings that the embeddings depend on besides the weights."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    settings = {
        "name": teacher.NAME,
        "backbone": teacher.BACKBONE,
        "last_stride": teacher.LAST_STRIDE,
        "crop_size": list(teacher.CROP_SIZE),
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
    }
    return json.dumps(settings)
