# SPDX-License-Identifier: Apache-2.0
"""Training of a teacher, and the embeddings that it gives to all boxes of a data set."""

import logging
import os
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils.events import CommonMetricPrinter, JSONWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from psdiff.teachers.crops import IdentityBatches, LabeledCrops, SceneCrops, augmentations
from psdiff.teachers.memory import HybridMemory
from psdiff.teachers.reid_net import TeacherNet

logger = logging.getLogger(__name__)


class TeacherTrainingModel(nn.Module):
    """Network and memory as one module, as Detectron2's trainers expect: batch in, losses out."""

    def __init__(self, net: TeacherNet, memory: HybridMemory) -> None:
        super().__init__()
        self.net, self.memory = net, memory

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        crops, pids = (item.to(self.net.pixel_mean.device) for item in batch)
        return {"loss_teacher": self.memory(self.net(crops), pids)}


def read_crops(records: Sequence[dict], cfg: CfgNode) -> Tensor:
    """Crops of all boxes of all records, in their order: (M, 3, h, w) uint8."""
    scenes = SceneCrops(records, tuple(cfg.MODEL.PSDIFF.TEACHER.CROP_SIZE), cfg.INPUT.FORMAT)
    loader = DataLoader(scenes, batch_size=None, num_workers=cfg.DATALOADER.NUM_WORKERS)
    return torch.cat(list(tqdm(loader, desc="cutting out persons", unit="scene")))


class _CosineRate(HookBase):
    """Learning rate from its base value down to zero along half a cosine."""

    def __init__(self, optimizer: torch.optim.Optimizer, max_iter: int) -> None:
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_iter)

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("lr", self.schedule.get_last_lr()[0], smoothing_hint=False)
        self.schedule.step()


def train_teacher(cfg: CfgNode, records: Sequence[dict], num_pids: int) -> TeacherNet:
    """Trains the teacher of ``cfg.MODEL.PSDIFF.TEACHER`` on the boxes of ``records``.

    Crops are held in memory as uint8: 55,000 of 256 x 128 pixels take 5.4 GB.

    Returns:
        The network in eval mode. ``<OUTPUT_DIR>/teacher.safetensors`` holds its weights,
        ``backbone.pth`` those of the backbone under the names of an FPN detector (MODEL.WEIGHTS).
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    crops = read_crops(records, cfg)
    pids = torch.tensor([a["person_id"] for r in records for a in r["annotations"]])
    dataset = LabeledCrops(crops, pids, augmentations(tuple(teacher.CROP_SIZE)))
    batches = IdentityBatches(
        pids, teacher.IDS_PER_BATCH, teacher.CROPS_PER_ID, teacher.IDS_PER_BATCH, max(cfg.SEED, 0)
    )
    logger.info(
        "Teacher: %d crops, %d of %d identities, %d without identity.",
        *(len(crops), num_pids, num_pids, len(batches.unlabeled)),
    )
    net = TeacherNet(cfg)
    if teacher.WEIGHTS:
        net.load(teacher.WEIGHTS)
    memory = HybridMemory(
        num_pids,
        cfg.MODEL.REID.EMBED_DIM,
        teacher.TEMPERATURE,
        teacher.MOMENTUM,
        teacher.QUEUE_SIZE,
    )
    model = TeacherTrainingModel(net, memory).to(cfg.MODEL.DEVICE).train()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=teacher.BASE_LR, weight_decay=teacher.WEIGHT_DECAY
    )
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=cfg.DATALOADER.NUM_WORKERS)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    writers = [
        CommonMetricPrinter(teacher.MAX_ITER),
        JSONWriter(os.path.join(cfg.OUTPUT_DIR, "teacher_metrics.json")),
    ]
    trainer = SimpleTrainer(model, loader, optimizer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            _CosineRate(optimizer, teacher.MAX_ITER),
            hooks.PeriodicWriter(writers, period=20),
        ]
    )
    trainer.train(0, teacher.MAX_ITER)
    net.eval()
    net.save(os.path.join(cfg.OUTPUT_DIR, "teacher.safetensors"))
    # A detector with the same network below its FPN can start from it, as from ImageNet weights.
    start = {f"backbone.bottom_up.{k}": v for k, v in net.backbone.state_dict().items()}
    torch.save({"model": start}, os.path.join(cfg.OUTPUT_DIR, "backbone.pth"))
    return net


@torch.no_grad()
def embed_boxes(net: TeacherNet, records: Sequence[dict], cfg: CfgNode) -> np.ndarray:
    """Embeddings of all boxes of ``records`` and of their mirror images; (M, 2, D) float32."""
    scenes = SceneCrops(records, net.crop_size, cfg.INPUT.FORMAT)
    loader = DataLoader(scenes, batch_size=None, num_workers=cfg.DATALOADER.NUM_WORKERS)
    device, feats = net.pixel_mean.device, []
    for crops in tqdm(loader, desc="teacher embeddings", unit="scene"):
        if len(crops) == 0:
            continue
        both = [net(view.to(device)).cpu() for view in (crops, crops.flip(3))]
        feats.append(torch.stack(both, dim=1))
    if not feats:
        return np.zeros((0, 2, cfg.MODEL.REID.EMBED_DIM), np.float32)
    return torch.cat(feats).numpy()
