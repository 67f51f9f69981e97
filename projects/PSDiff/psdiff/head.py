# SPDX-License-Identifier: Apache-2.0
"""The head of PSDiff: RoI pooling, the Collaborative Denoising Layer and the prediction branches.

Shape shorthand in this file:
    B: images. N: proposals of an image. C: feature channels. D: embedding dimension.
    S: cells of a pooled window.
Naming: ``t`` is the diffusion time, 0 to 999; the sigmoid of ``logits`` is the score.
"""

import math
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from psdiff.box_diffusion import NUM_TRAIN_TIMESTEPS, SignalCodec, cosine_alphas_cumprod
from psdiff.cdl import CollaborativeDenoisingLayer
from psdiff.config import check_choice

# Score of an untrained class branch, as in the focal loss paper.
_PRIOR_PROBABILITY = 0.01


@dataclass
class HeadOutput:
    """Predictions of the clean boxes and embeddings.

    Attributes:
        boxes: Boxes (B, N, 4), XYXY pixels of the input images.
        logits: Class logits (B, N).
        reid_feats: Embeddings (B, N, D) of arbitrary norm.
    """

    boxes: Tensor
    logits: Tensor
    reid_feats: Tensor


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of t followed by an MLP: (B,) -> (B, 4C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))

    def forward(self, t: Tensor) -> Tensor:
        """Returns (B, 4C) for times (B,)."""
        half = self.dim // 2
        exponent = torch.arange(half, device=t.device) / max(half - 1, 1)
        angles = t[:, None] * torch.exp(-math.log(10000.0) * exponent)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


def _branch(dim_in: int, dim: int, num_hidden: int, dim_out: int) -> nn.Sequential:
    """Builds ``num_hidden`` layers (linear, LayerNorm, ReLU) and a linear layer to ``dim_out``."""
    layers: list[nn.Module] = []
    for index in range(num_hidden):
        layers += [nn.Linear(dim_in if index == 0 else dim, dim), nn.LayerNorm(dim), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dim if num_hidden else dim_in, dim_out))


class PSDiffHead(nn.Module):
    """One denoising step: predicts clean boxes and embeddings from noisy ones.

    All steps share the weights; the noise level enters only through ``t``.
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
        """Builds the branches and initializes all weights.

        Args:
            in_features: Names of the feature maps of the pooler, from fine to coarse.
            pooler: RoI pooler.
            cdl: Collaborative Denoising Layer.
            codec: Scales of the signals; embeddings are divided by s2 at the input.
            dim: Feature channels C.
            embed_dim: Embedding dimension D.
            prediction: Input of the detection branches, ``cascaded``, ``parallel`` or ``skip``.
            token_scale: ``plain`` or ``wiener``, see :meth:`SignalCodec.wiener_gain`.
            reid_input: ``diffusion``: the layer reads the noisy embeddings. ``imitation``: it reads
                one learned vector for all proposals instead (the bias of ``cdl.reid_in``), so that
                embeddings imitate the teacher as in plain distillation (Table VI).
            num_cls: Hidden layers of the class branch.
            num_reg: Hidden layers of the box branch.
        """
        super().__init__()
        check_choice("CDL.PREDICTION", prediction, ("cascaded", "parallel", "skip"))
        check_choice("CDL.TOKEN_SCALE", token_scale, ("plain", "wiener"))
        check_choice("CDL.REID_INPUT", reid_input, ("diffusion", "imitation"))
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
        # Targets have unit norm, far below the output of the last layer at full gain.
        nn.init.xavier_uniform_(self.reid_branch[-1].weight, gain=0.1)
        bias = self.cls_branch[-1].bias
        nn.init.constant_(bias, -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Returns the arguments of ``__init__``."""
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
                conditioning_init=psdiff.CDL.CONDITIONING_INIT,
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
        self,
        features: dict[str, Tensor],
        boxes: Tensor,
        reid_signal: Tensor,
        t: Tensor,
        dtype: torch.dtype | None = None,
    ) -> HeadOutput:
        """Predicts the clean boxes and embeddings.

        Args:
            features: Feature maps (B, C, H, W) of the backbone.
            boxes: Noisy boxes (B, N, 4), XYXY pixels.
            reid_signal: Noisy embeddings (B, N, D) in the signal frame.
            t: Diffusion times (B,).
            dtype: See :meth:`pool`.
        """
        return self.denoise(self.pool(features, boxes, dtype), boxes, reid_signal, t)

    def pool(
        self, features: dict[str, Tensor], boxes: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Pools the features of each box.

        Pools in float32: the pooler rounds boxes to the dtype of the features, and bfloat16 has a
        resolution of 4 pixels at 1000 pixels.

        Args:
            features: Feature maps (B, C, H, W) of the backbone.
            boxes: Boxes (B, N, 4), XYXY pixels.
            dtype: Dtype of the result. Default: that of the features.

        Returns:
            Windows (B, N, S, C).
        """
        maps = [features[name] for name in self.in_features]
        with torch.autocast(boxes.device.type, enabled=False):
            pooled = self.pooler([x.float() for x in maps], [Boxes(item) for item in boxes])
        pooled = pooled.to(dtype or maps[0].dtype)
        # Contiguous once here, instead of in each later operation.
        cells = pooled.flatten(2).transpose(1, 2).contiguous()
        return cells.view(*boxes.shape[:2], *cells.shape[1:])

    def denoise(
        self, roi_feats: Tensor, boxes: Tensor, reid_signal: Tensor, t: Tensor
    ) -> HeadOutput:
        """Predicts from pooled features ``roi_feats`` (B, N, S, C), otherwise as ``forward``."""
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
