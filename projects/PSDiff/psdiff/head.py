# SPDX-License-Identifier: Apache-2.0
"""The head of PSDiff: RoI pooling, the Collaborative Denoising Layer and the prediction branches.

Shape shorthand in this file:
    B: images. N: proposals of an image. C: feature channels. D: length of an embedding.
Naming: ``t`` is the diffusion time 0 .. 999; ``logits`` become scores by a sigmoid.
"""

import math
from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from psdiff.box_diffusion import NUM_TRAIN_TIMESTEPS, SignalCodec, cosine_alphas_cumprod
from psdiff.cdl import CollaborativeDenoisingLayer

_PREDICTIONS = ("cascaded", "parallel", "skip")
# Probability of "person" that an untrained class branch gives, as in the focal loss paper.
_PRIOR_PROBABILITY = 0.01


@dataclass
class HeadOutput:
    """Predictions for the clean signal: boxes (B, N, 4) XYXY pixels of the padded batch's images,
    logits (B, N), reid_feats (B, N, D) of free length."""

    boxes: Tensor
    logits: Tensor
    reid_feats: Tensor


class TimeEmbedding(nn.Module):
    """Sinusoids of t followed by an MLP: (B,) -> (B, 4C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        exponent = torch.arange(half, device=t.device) / max(half - 1, 1)
        angles = t[:, None] * torch.exp(-math.log(10000.0) * exponent)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


def _branch(dim_in: int, dim: int, num_hidden: int, dim_out: int) -> nn.Sequential:
    """``num_hidden`` times (linear, LayerNorm, ReLU), then a linear layer to ``dim_out``."""
    layers: list[nn.Module] = []
    for index in range(num_hidden):
        layers += [nn.Linear(dim_in if index == 0 else dim, dim), nn.LayerNorm(dim), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dim if num_hidden else dim_in, dim_out))


class PSDiffHead(nn.Module):
    """One denoising step: noisy boxes and embeddings in, predictions of the clean ones out.

    The same weights serve every step; how noisy the input is enters only by ``t``.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        cdl: CollaborativeDenoisingLayer,
        codec: SignalCodec,
        dim: int,
        embed_dim: int,
        prediction: str = "skip",
        token_scale: str = "plain",
        reid_input: str = "diffusion",
        num_cls: int = 1,
        num_reg: int = 3,
    ) -> None:
        """
        Args:
            in_features: feature maps that the pooler reads, from fine to coarse.
            codec: scales of the signals; embeddings are divided by s2 before they enter.
            dim: C. embed_dim: D.
            prediction: ``cascaded``, ``parallel`` or ``skip``: what the detection branches read.
            token_scale: ``plain`` or ``wiener``, see :meth:`SignalCodec.wiener_gain`.
            reid_input: ``diffusion``: the layer gets the noisy embeddings; ``imitation``: in their
                place the same learnt vector for every proposal (the bias of ``cdl.reid_in``), so
                that embeddings imitate the teacher directly, as in plain distillation (Table VI).
            num_cls, num_reg: hidden layers of the class and the box branch.
        """
        super().__init__()
        if prediction not in _PREDICTIONS:
            raise ValueError(
                f"MODEL.PSDIFF.CDL.PREDICTION is '{prediction}'; it must be one of {_PREDICTIONS}."
            )
        if token_scale not in ("plain", "wiener"):
            raise ValueError(
                f"MODEL.PSDIFF.CDL.TOKEN_SCALE is '{token_scale}'; it must be 'plain' or 'wiener'."
            )
        if reid_input not in ("diffusion", "imitation"):
            raise ValueError(
                f"MODEL.PSDIFF.CDL.REID_INPUT is '{reid_input}'; it must be 'diffusion' or "
                "'imitation'."
            )
        self.in_features = in_features
        self.pooler = pooler
        self.cdl = cdl
        self.codec = codec
        self.prediction = prediction
        gain = torch.ones(NUM_TRAIN_TIMESTEPS)
        if token_scale == "wiener":
            gain = codec.wiener_gain(cosine_alphas_cumprod(), embed_dim).float()
        if reid_input == "imitation":
            gain = torch.zeros(NUM_TRAIN_TIMESTEPS)
        self.register_buffer("token_gain", gain / codec.snr_reid, persistent=False)
        self.time_embedding = TimeEmbedding(dim)
        self.reid_branch = _branch(2 * dim, dim, 1, embed_dim)
        det_dim = {"cascaded": embed_dim, "parallel": 2 * dim, "skip": embed_dim + dim}[prediction]
        self.cls_branch = _branch(det_dim, dim, num_cls, 1)
        self.box_branch = _branch(det_dim, dim, num_reg, 4)
        self.box2box = Box2BoxTransform(
            weights=(2.0, 2.0, 1.0, 1.0), scale_clamp=math.log(100000.0 / 16)
        )
        self._init_weights()

    def _init_weights(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        self.cdl.init_conditioning()
        # Targets have length one, far below what the last layer would give at full gain.
        nn.init.xavier_uniform_(self.reid_branch[-1].weight, gain=0.1)
        bias = self.cls_branch[-1].bias
        nn.init.constant_(bias, -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY))

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        psdiff = cfg.MODEL.PSDIFF
        missing = [name for name in psdiff.CDL.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.PSDIFF.CDL.IN_FEATURES names {missing}, but the backbone "
                f"{cfg.MODEL.BACKBONE.NAME} gives {sorted(input_shape)}."
            )
        shapes = [input_shape[name] for name in psdiff.CDL.IN_FEATURES]
        dim, embed_dim = shapes[0].channels, cfg.MODEL.REID.EMBED_DIM
        resolution = psdiff.CDL.POOLER_RESOLUTION
        return {
            "in_features": list(psdiff.CDL.IN_FEATURES),
            "pooler": ROIPooler(
                output_size=resolution,
                scales=[1.0 / shape.stride for shape in shapes],
                sampling_ratio=psdiff.CDL.POOLER_SAMPLING_RATIO,
                pooler_type="ROIAlignV2",
                canonical_box_size=psdiff.CDL.CANONICAL_BOX_SIZE,
                canonical_level=psdiff.CDL.CANONICAL_LEVEL,
            ),
            "cdl": CollaborativeDenoisingLayer(
                dim=dim,
                num_cells=resolution**2,
                embed_dim=embed_dim,
                heads=psdiff.CDL.HEADS,
                use_sa=psdiff.CDL.SA,
                use_dc=psdiff.CDL.DC,
                use_ca=psdiff.CDL.CA,
                sa_over=psdiff.CDL.SA_OVER,
                dc_hidden=psdiff.CDL.DC_DIM,
                dc_out=psdiff.CDL.DC_OUT,
            ),
            "codec": SignalCodec(psdiff.SNR_BOX, psdiff.SNR_REID, psdiff.EMBED_NORM),
            "dim": dim,
            "embed_dim": embed_dim,
            "token_scale": psdiff.CDL.TOKEN_SCALE,
            "reid_input": psdiff.CDL.REID_INPUT,
            "prediction": psdiff.CDL.PREDICTION,
            "num_cls": psdiff.CDL.NUM_CLS,
            "num_reg": psdiff.CDL.NUM_REG,
        }

    def forward(
        self, features: dict[str, Tensor], boxes: Tensor, reid_signal: Tensor, t: Tensor
    ) -> HeadOutput:
        """Predicts the clean boxes and embeddings.

        Args:
            features: backbone outputs, (B, C, H, W) each.
            boxes: (B, N, 4) noisy boxes, XYXY pixels.
            reid_signal: (B, N, D) noisy embeddings in the signal frame.
            t: (B,) diffusion times.
        """
        return self.denoise(self.pool(features, boxes), boxes, reid_signal, t)

    def pool(self, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
        """What each box sees: (B, N, 4) XYXY pixels -> (B, N, S, C) with S cells of the window.

        Pools in float32: the pooler would round boxes to the type of the features, and in bfloat16
        a corner at 1000 pixels is known to 4 pixels only.
        """
        maps = [features[name] for name in self.in_features]
        with torch.autocast(boxes.device.type, enabled=False):
            pooled = self.pooler([x.float() for x in maps], [Boxes(item) for item in boxes])
        pooled = pooled.to(maps[0].dtype)
        # Contiguous once here, instead of in each operation that follows.
        cells = pooled.flatten(2).transpose(1, 2).contiguous()
        return cells.view(*boxes.shape[:2], *cells.shape[1:])

    def denoise(
        self, roi_feats: Tensor, boxes: Tensor, reid_signal: Tensor, t: Tensor
    ) -> HeadOutput:
        """The step after the pooling: ``roi_feats`` is (B, N, S, C), the rest as in ``forward``."""
        collaborative, det_feats = self.cdl(
            roi_feats, reid_signal * self.token_gain[t, None, None], self.time_embedding(t)
        )
        reid_feats = self.reid_branch(collaborative)
        if self.prediction == "cascaded":
            det_input = reid_feats
        elif self.prediction == "parallel":
            det_input = collaborative
        else:
            det_input = torch.cat([reid_feats, det_feats], dim=-1)
        deltas = self.box_branch(det_input).float()
        new_boxes = self.box2box.apply_deltas(deltas.flatten(0, 1), boxes.flatten(0, 1))
        return HeadOutput(
            boxes=new_boxes.view_as(boxes),
            logits=self.cls_branch(det_input).squeeze(-1).float(),
            reid_feats=reid_feats.float(),
        )
