# SPDX-License-Identifier: Apache-2.0
"""The re-ID branch after MSFRN: RoI features, SFAN, a ResNet stage, embedder and OIM.

Shape shorthand in this file:
    B: images. N: RoIs of all images. C: channels of the re-ID map. h, w: cells of a pooled RoI.
    D: length of the embedding.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from diffps.embedder import MultiGranularityEmbedder
from diffps.res5 import Res5
from diffps.sampling import RoISampler
from diffps.sfan import SFAN
from person_search.modeling import OIMLoss
from person_search.schema import PERSON_CATEGORY_ID


class ReIDHead(nn.Module):
    """Embeds boxes, without sharing weights with detection or passing gradients to boxes.

    Args:
        pooler: Pools the boxes from the feature map ``in_feature``.
        sfan: SFAN; None to omit it.
        res5: ResNet stage.
        embedder: Computes the embedding.
        oim: Loss.
        sampler: Selects the RoIs to train on.
        use_input_map: Whether to embed the input of ``res5`` as well as its output.
        drop_background: Whether to leave out background RoIs, which have no loss, in training. The
            batch norms then see only persons, as in testing.
        loss_weight: Weight of the OIM loss.
    """

    in_feature = "reid"

    @configurable
    def __init__(
        self,
        *,
        pooler: ROIPooler,
        sfan: SFAN | None,
        res5: Res5,
        embedder: MultiGranularityEmbedder,
        oim: OIMLoss,
        sampler: RoISampler,
        use_input_map: bool = True,
        drop_background: bool = False,
        loss_weight: float = 2.0,
    ) -> None:
        super().__init__()
        self.pooler, self.sfan, self.res5 = pooler, sfan or nn.Identity(), res5
        self.embedder, self.oim, self.sampler = embedder, oim, sampler
        self.use_input_map, self.drop_background = use_input_map, drop_background
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec], text_vectors: Tensor | None):
        """Returns the arguments of the constructor."""
        reid, oim = cfg.MODEL.DIFFPS.REID, cfg.MODEL.DIFFPS.OIM
        shape, pool = input_shape[cls.in_feature], tuple(reid.POOL)
        res5 = Res5.from_cfg(cfg, shape.channels)
        if (pool[0] + 1) // 2 < reid.BRANCHES:
            raise ValueError(
                f"MODEL.DIFFPS.REID.POOL {pool} leaves {(pool[0] + 1) // 2} rows after the head, "
                f"fewer than MODEL.DIFFPS.REID.BRANCHES {reid.BRANCHES} strips need."
            )
        if cfg.MODEL.REID.NUM_PIDS < 1:
            raise ValueError(
                "MODEL.REID.NUM_PIDS is 0: the look-up table needs the number of identities. "
                "train_net.py sets it from the training set; elsewhere set it to that of the "
                "weights (CUHK-SYSU 5532, PRW 483)."
            )
        in_channels = [shape.channels] * reid.USE_INPUT_MAP + [res5.out_channels]
        return {
            "pooler": ROIPooler(
                output_size=pool,
                scales=(1.0 / shape.stride,),
                sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
                pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            ),
            "sfan": SFAN(cfg, shape.channels, text_vectors)
            if cfg.MODEL.DIFFPS.SFAN.ENABLED
            else None,
            "res5": res5,
            "embedder": MultiGranularityEmbedder(cfg, in_channels),
            "oim": OIMLoss(
                cfg.MODEL.REID.NUM_PIDS,
                cfg.MODEL.REID.EMBED_DIM,
                oim.QUEUE_SIZE,
                oim.MOMENTUM,
                oim.SCALE,
            ),
            "sampler": RoISampler(
                reid.POS_IOU,
                reid.NEG_IOU,
                reid.BATCH_SIZE_PER_IMAGE,
                mode=cfg.MODEL.DIFFPS.HEAD.SAMPLER,
                name="reid_head",
            ),
            "use_input_map": reid.USE_INPUT_MAP,
            "drop_background": reid.DROP_BACKGROUND,
            "loss_weight": oim.LOSS_WEIGHT,
        }

    def pool(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Pools all boxes, see :meth:`embed`: (N, C, h, w) float32."""
        # float32, because the pooler casts boxes to the dtype of the map, and half is too coarse
        return self.pooler([features[self.in_feature].float()], boxes)

    def embed(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Embeds boxes of all images.

        Args:
            features: Feature maps with ``reid``, (B, C, H, W).
            boxes: Boxes of each image, in pixels of the input.

        Returns:
            (N, D) float32 of unit length, in the order of the images; (0, D) without boxes.
        """
        pooled = self.sfan(self.pool(features, boxes))
        output = self.res5(pooled)
        return self.embedder([pooled, output] if self.use_input_map else [output])

    def losses(
        self, features: dict[str, Tensor], boxes: list[Boxes], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Samples RoIs, embeds them and computes the OIM loss.

        Args:
            features: See :meth:`embed`.
            boxes: Candidates of each image.
            targets: Ground truth of each image with ``gt_boxes`` and ``gt_pids``.

        Returns:
            ``loss_oim``, weighted.
        """
        rois = self.sampler(boxes, targets, keep_background=not self.drop_background)
        reid_feats = self.embed(features, [x.proposal_boxes for x in rois])
        is_person = torch.cat([x.gt_classes for x in rois]) == PERSON_CATEGORY_ID
        # background contributes to the batch norms, but not to the loss
        loss = self.oim(reid_feats[is_person], torch.cat([x.gt_pids for x in rois])[is_person])
        return {"loss_oim": self.loss_weight * loss}
