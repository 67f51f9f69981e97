# SPDX-License-Identifier: Apache-2.0
"""The teacher network: a person crop in, a unit embedding out.

Shape shorthand in this file: n crops, D length of an embedding.
"""

import hashlib

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_GEM_MIN = 1e-6


class GeneralizedMeanPool(nn.Module):
    """Generalized mean over all positions with a learnt exponent p: (n, C, H, W) -> (n, C)."""

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=_GEM_MIN).pow(self.p).mean(dim=(2, 3)).pow(1.0 / self.p)


class TeacherNet(nn.Module):
    """Backbone, generalized mean pooling, projection to D, batch norm neck, unit length.

    Crops are uint8 or float tensors (n, 3, H, W) in 0..255, channels as ``cfg.INPUT.FORMAT``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        embed_dim: int,
        crop_size: tuple[int, int],
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        """
        Args:
            backbone: its last output feature is pooled.
            embed_dim: D. crop_size: (h, w) of the crops it is trained on.
        """
        super().__init__()
        shapes = backbone.output_shape()
        self.feature = max(shapes, key=lambda name: shapes[name].stride)
        self.backbone = backbone
        self.crop_size = tuple(crop_size)
        self.pool = GeneralizedMeanPool()
        self.project = nn.Linear(shapes[self.feature].channels, embed_dim, bias=False)
        self.neck = nn.BatchNorm1d(embed_dim)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        nn.init.kaiming_normal_(self.project.weight, mode="fan_out")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        teacher = cfg.MODEL.PSDIFF.TEACHER
        build = BACKBONE_REGISTRY.get(teacher.BACKBONE)
        return {
            "backbone": build(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))),
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "crop_size": teacher.CROP_SIZE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, crops: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, D) of unit length."""
        x = (crops.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        x = self.pool(self.backbone(x)[self.feature])
        return F.normalize(self.neck(self.project(x)), dim=1)

    def weights_hash(self) -> str:
        """Short hash of all weights, written into the embeddings that the teacher makes."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str) -> None:
        """Writes the weights as safetensors."""
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path)

    def load(self, path: str) -> None:
        """Reads weights written by :meth:`save`; refuses those of another architecture."""
        try:
            self.load_state_dict(load_file(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"MODEL.PSDIFF.TEACHER.WEIGHTS is '{path}', which is no file. Make one with "
                "projects/PSDiff/train_teacher.py."
            ) from error
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"MODEL.PSDIFF.TEACHER.WEIGHTS: '{path}' does not fit the teacher of this config "
                f"(MODEL.PSDIFF.TEACHER.BACKBONE, MODEL.SLIM_RESNET, MODEL.REID.EMBED_DIM): {error}"
            ) from error
