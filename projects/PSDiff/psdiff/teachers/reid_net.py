# SPDX-License-Identifier: Apache-2.0
"""What all teacher networks share: crops in, unit embeddings out, weights to and from a file.

Shape shorthand in this file: n crops, C channels of a pooled feature, D length of an embedding.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from safetensors.torch import save
from torch import Tensor, nn

from person_search.utils.files import write_atomically
from person_search.utils.weight_files import WeightFileError, read_weights
from psdiff.teachers.backbones import build_teacher_backbone


@dataclass(frozen=True)
class TeacherFeatures:
    """What a network says about n crops; losses take from it what they need.

    Args:
        before_neck: (n, D) projected feature, where distances are measured in training.
        after_neck: (n, D) the same behind batch norm, where classes and cosines are.
        whole: features of whole persons, each (n, C).
        reduced: the same behind a reduction, each (n, PART_DIM).
        parts: features of parts of persons, each (n, C or PART_DIM).
    """

    before_neck: Tensor
    after_neck: Tensor
    whole: tuple[Tensor, ...] = ()
    reduced: tuple[Tensor, ...] = ()
    parts: tuple[Tensor, ...] = ()

    @property
    def embedding(self) -> Tensor:
        """(n, D) of unit length."""
        return F.normalize(self.after_neck, dim=1)


class TeacherNet(nn.Module):
    """Base of all teachers. A subclass makes pooled features and hands them to :meth:`head`.

    The head is a linear layer without bias to D numbers and a batch norm. The latter is the "BN
    neck" of the strong baseline; in inference its output is brought to unit length.

    Crops are uint8 or float tensors (n, 3, H, W) in 0..255, channels as ``cfg.INPUT.FORMAT``.
    """

    neck_bias = True
    """Whether the batch norm may shift; the strong baseline forbids it."""

    last_stride: int | None = None
    """Stride of the last stage of the backbone; None: ``TEACHER.LAST_STRIDE``."""

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
        """
        Args:
            backbone: (n, 3, H, W) -> feature map.
            pooled_dim: length of what goes into the head. embed_dim: D.
            crop_size: (h, w) of the crops it is trained on.
            recipe: what else than the weights fixes the embeddings, part of :meth:`weights_hash`.
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
        """All features of crops (n, 3, H, W), as the losses need them."""
        raise NotImplementedError(f"{type(self).__name__} must say how it pools its feature map")

    def forward(self, crops: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, D) of unit length; n may be 0."""
        if len(crops) == 0:
            return self.pixel_mean.new_zeros(0, self.neck.num_features)
        return self.describe(crops).embedding

    def normalized(self, crops: Tensor) -> Tensor:
        """Pixels 0..255 -> what backbones take."""
        return (crops.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def head(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (n, C) -> (n, D) before and after the neck."""
        before = self.project(pooled)
        return before, self.neck(before)

    def weights_hash(self) -> str:
        """Short hash of weights and recipe, written into the embeddings that the teacher makes."""
        digest = hashlib.sha256(self.recipe.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str, source: dict[str, str] | None = None) -> None:
        """Writes the weights as safetensors; ``source`` says what they were trained on."""
        weights = {k: v.contiguous() for k, v in self.state_dict().items()}
        write_atomically(path, save(weights, metadata=source))

    def load(self, path: str) -> None:
        """Reads weights written by :meth:`save`; refuses those of another architecture."""
        try:
            self.load_state_dict(read_weights(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"MODEL.PSDIFF.TEACHER.WEIGHTS is '{path}', which is no file. Make one with "
                "projects/PSDiff/tools/train_teacher.py."
            ) from error
        except (RuntimeError, WeightFileError) as error:
            raise ValueError(
                f"MODEL.PSDIFF.TEACHER.WEIGHTS: '{path}' does not fit the teacher of this config "
                "(MODEL.PSDIFF.TEACHER.NAME and BACKBONE, MODEL.SLIM_RESNET, MODEL.REID.EMBED_DIM):"
                f" {error}"
            ) from error


def _recipe(cfg: CfgNode) -> str:
    """What the embeddings depend on beside the weights."""
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
