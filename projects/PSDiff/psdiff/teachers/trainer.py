# SPDX-License-Identifier: Apache-2.0
"""Training of a teacher.

The trainer extends Detectron2's SimpleTrainer; projects/PSDiff/tools/train_teacher.py adds the hook
for checkpoints.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils.events import CommonMetricPrinter, JSONWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader

from person_search.utils.files import write_atomically
from person_search.utils.model_card import CARD_KEY, ModelCard
from psdiff.teachers.batches import IdentityBatches
from psdiff.teachers.crops import CropStore, TrainingCrops, augmentations, read_crops
from psdiff.teachers.embeddings import describe_teacher
from psdiff.teachers.folder import WEIGHTS_FILE
from psdiff.teachers.losses import TeacherLoss
from psdiff.teachers.registry import build_teacher, build_teacher_loss
from psdiff.teachers.reid_net import TeacherFeatures, TeacherNet
from psdiff.teachers.schedule import (
    LearningRate,
    build_teacher_optimizer,
    rate_factor,
    total_iterations,
)

logger = logging.getLogger(__name__)

_DESCRIBE_BATCH = 64


class TeacherTrainingModel(nn.Module):
    """Network and loss as one module, the interface of Detectron2's trainers."""

    def __init__(self, net: TeacherNet, loss: TeacherLoss) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Returns the losses of (crops (n, 3, h, w) uint8, pids (n,), rows (n,))."""
        crops, pids, rows = (item.to(self.net.pixel_mean.device) for item in batch)
        return self.loss(self.net.describe(crops), pids, rows)


class TeacherTrainer(SimpleTrainer):
    """Trains the teacher of ``cfg.MODEL.PSDIFF.TEACHER`` on the boxes of ``records``.

    Logs losses, learning rate and remaining time every 20 iterations. A checkpoint consists of the
    state of the model and :meth:`state_dict`; after both are loaded, :meth:`continue_from` makes
    the next :meth:`run` continue as if there had been no interruption.

    Args:
        cfg: Config with ``MODEL.PSDIFF``.
        records: Records of the training set.
        num_pids: Number of training identities.
    """

    def __init__(self, cfg: CfgNode, records: Sequence[dict], num_pids: int) -> None:
        teacher = cfg.MODEL.PSDIFF.TEACHER
        pids = [annotation["person_id"] for r in records for annotation in r["annotations"]]
        pids = torch.tensor(pids, dtype=torch.int64)
        net = build_teacher(cfg)
        if teacher.WEIGHTS:
            net.load(teacher.WEIGHTS)
        # All settings are validated before the crops are read, which takes minutes.
        loss, batches = _loss_and_batches(cfg, net, pids, num_pids)
        rate_factor(cfg, 1)
        build_teacher_optimizer(cfg, net)
        self.crops, readable = read_crops(records, cfg)
        if len(readable) < len(pids):  # without the crops of skipped images
            pids = readable
            loss, batches = _loss_and_batches(cfg, net, pids, num_pids)
        self.net, self.loss, self.batches = net, loss, batches
        self.per_epoch = batches.steps_per_epoch()
        self.total = total_iterations(cfg, self.per_epoch)
        model = TeacherTrainingModel(net, loss).to(cfg.MODEL.DEVICE)
        optimizer = build_teacher_optimizer(cfg, model)
        super().__init__(model, _build_loader(cfg, self.crops, pids, batches), optimizer)
        self.output_dir = cfg.OUTPUT_DIR
        self.source = describe_teacher(cfg, "+".join(cfg.DATASETS.TRAIN), records)
        logger.info(
            "Teacher %s, %.2f M weights: %d crops, %d identities, %d crops without identity%s; "
            "%d iterations, %d in an epoch.",
            teacher.NAME,
            sum(p.numel() for p in net.parameters()) / 1e6,
            len(self.crops),
            num_pids,
            len(batches.unlabeled),
            "" if batches.unlabeled_per_batch else " (not used)",
            self.total,
            self.per_epoch,
        )
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        metrics = os.path.join(cfg.OUTPUT_DIR, "teacher_metrics.json")
        writers = [CommonMetricPrinter(self.total), JSONWriter(metrics)]
        self.register_hooks(
            [
                hooks.IterationTimer(),
                LearningRate(optimizer, teacher.BASE_LR, rate_factor(cfg, self.per_epoch)),
                _EpochStart(),
                hooks.PeriodicWriter(writers, period=20),
            ]
        )

    def continue_from(self, iteration: int) -> None:
        """Makes :meth:`run` start at this iteration."""
        self.start_iter = self.batches.start_step = iteration

    def run(self) -> TeacherNet:
        """Trains to the end and returns the network in eval mode."""
        if self.total == 0:
            self.loss.start_epoch(0, self.describe)
        elif self.start_iter >= self.total:
            logger.info("All %d iterations are complete already.", self.total)
        else:
            self.train(self.start_iter, self.total)
        return self.net.eval()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the trainer, including the seed of the batches."""
        return {**super().state_dict(), "batches": {"seed": self.batches.seed}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self.batches.seed = self.data_loader.dataset.seed = state_dict["batches"]["seed"]

    @torch.no_grad()
    def describe(self, rows: Tensor) -> Iterator[TeacherFeatures]:
        """Yields the features of training crops by the network in eval mode, batch by batch."""
        was_training = self.net.training
        self.net.eval()
        try:
            for chunk in rows.split(_DESCRIBE_BATCH):
                crops = torch.stack([self.crops[row] for row in chunk.tolist()])
                yield self.net.describe(crops.to(self.net.pixel_mean.device))
        finally:
            self.net.train(was_training)

    def export(self, card: ModelCard | None = None) -> str:
        """Writes the weights of the network, with a model card, and returns their path.

        ``<OUTPUT_DIR>/teacher.safetensors`` is the input of compute_embeddings.py. If the backbone
        is one of Detectron2's, ``backbone.pth`` holds its weights under the names of an FPN
        detector, which can start from it (MODEL.WEIGHTS) as from ImageNet weights.
        """
        path = os.path.join(self.output_dir, WEIGHTS_FILE)
        self.net.save(path, {**self.source, "teacher_hash": self.net.weights_hash()}, card)
        if getattr(self.net.backbone, "as_detector", False):
            weights = self.net.backbone.state_dict()
            start = {f"backbone.bottom_up.{k}": v for k, v in weights.items()}
            backbone = os.path.join(self.output_dir, "backbone.pth")
            content = {"model": start} | ({} if card is None else {CARD_KEY: card.to_json()})
            write_atomically(backbone, lambda file: torch.save(content, file))
        return path


class _EpochStart(HookBase):
    """Calls ``loss.start_epoch`` before each epoch."""

    def before_step(self) -> None:
        epoch, place = divmod(self.trainer.iter, self.trainer.per_epoch)
        if place == 0:
            self.trainer.loss.start_epoch(epoch, self.trainer.describe)


def _loss_and_batches(
    cfg: CfgNode, net: TeacherNet, pids: Tensor, num_pids: int
) -> tuple[TeacherLoss, IdentityBatches]:
    teacher = cfg.MODEL.PSDIFF.TEACHER
    loss = build_teacher_loss(cfg, net, pids, num_pids)
    unlabeled = teacher.IDS_PER_BATCH if loss.uses_unlabeled else 0
    seed = max(cfg.SEED, 0)
    return loss, IdentityBatches(pids, teacher.IDS_PER_BATCH, teacher.CROPS_PER_ID, unlabeled, seed)


def _build_loader(
    cfg: CfgNode, crops: CropStore, pids: Tensor, batches: IdentityBatches
) -> DataLoader:
    return DataLoader(
        TrainingCrops(crops, pids, augmentations(cfg), batches.seed),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        worker_init_fn=_limit_threads,
        # The loader draws a seed for its workers, which must not come from the global generator.
        generator=torch.Generator().manual_seed(0),
    )


def _limit_threads(worker_id: int) -> None:
    """Uses one thread per worker, since the workers run in parallel."""
    torch.set_num_threads(1)
