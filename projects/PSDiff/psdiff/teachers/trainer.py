# SPDX-License-Identifier: Apache-2.0
"""Training of a teacher.

The trainer is one of Detectron2's, so that hooks for checkpoints can be added from outside; see
projects/PSDiff/tools/train_teacher.py.
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
from psdiff.teachers.advice import WEIGHTS_FILE
from psdiff.teachers.batches import IdentityBatches
from psdiff.teachers.crops import TrainingCrops, augmentations, read_crops
from psdiff.teachers.embeddings import describe_teacher
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

_DESCRIBED_AT_ONCE = 64


class TeacherTrainingModel(nn.Module):
    """Network and loss as one module, as Detectron2's trainers expect: batch in, losses out."""

    def __init__(self, net: TeacherNet, loss: TeacherLoss) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Losses of (crops (n, 3, h, w) uint8, pids (n,), rows (n,))."""
        crops, pids, rows = (item.to(self.net.pixel_mean.device) for item in batch)
        return self.loss(self.net.describe(crops), pids, rows)


class TeacherTrainer(SimpleTrainer):
    """Trains the teacher of ``cfg.MODEL.PSDIFF.TEACHER`` on the boxes of ``records``.

    Log lines with losses, learning rate and remaining time come every 20 iterations. The state that
    a checkpoint needs is the model's and :meth:`state_dict`; after both are loaded,
    :meth:`continue_from` makes the next :meth:`run` go on as if there had been no interruption.

    Args:
        cfg: with ``MODEL.PSDIFF``. records: of the training set. num_pids: its identities.
    """

    def __init__(self, cfg: CfgNode, records: Sequence[dict], num_pids: int) -> None:
        teacher, seed = cfg.MODEL.PSDIFF.TEACHER, max(cfg.SEED, 0)
        pids = torch.tensor([a["person_id"] for r in records for a in r["annotations"]])
        net = build_teacher(cfg)
        if teacher.WEIGHTS:
            net.load(teacher.WEIGHTS)
        loss = build_teacher_loss(cfg, net, pids, num_pids)
        unlabeled = teacher.IDS_PER_BATCH if loss.uses_unlabeled else 0
        self.batches = IdentityBatches(
            pids, teacher.IDS_PER_BATCH, teacher.CROPS_PER_ID, unlabeled, seed
        )
        self.per_epoch = self.batches.steps_per_epoch()
        self.total = total_iterations(cfg, self.per_epoch)
        factor = rate_factor(cfg, self.per_epoch)
        model = TeacherTrainingModel(net, loss).to(cfg.MODEL.DEVICE)
        optimizer = build_teacher_optimizer(cfg, model)
        self.crops = read_crops(records, cfg)
        super().__init__(model, _build_loader(cfg, self.crops, pids, self.batches), optimizer)
        self.net, self.loss, self.output_dir = net, loss, cfg.OUTPUT_DIR
        self.source = describe_teacher(cfg, "+".join(cfg.DATASETS.TRAIN), records)
        self._log_setting(teacher.NAME, num_pids)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        metrics = os.path.join(cfg.OUTPUT_DIR, "teacher_metrics.json")
        writers = [CommonMetricPrinter(self.total), JSONWriter(metrics)]
        self.register_hooks(
            [
                hooks.IterationTimer(),
                LearningRate(optimizer, teacher.BASE_LR, factor),
                _EpochStart(),
                hooks.PeriodicWriter(writers, period=20),
            ]
        )

    def _log_setting(self, name: str, num_pids: int) -> None:
        logger.info(
            "Teacher %s, %.2f M weights: %d crops, %d identities, %d crops without identity%s; "
            "%d iterations, %d in an epoch.",
            name,
            sum(p.numel() for p in self.net.parameters()) / 1e6,
            len(self.crops),
            num_pids,
            len(self.batches.unlabeled),
            "" if self.batches.unlabeled_per_batch else " (left out)",
            self.total,
            self.per_epoch,
        )

    def continue_from(self, iteration: int) -> None:
        """Lets :meth:`run` begin with this iteration."""
        self.start_iter = self.batches.start_step = iteration

    def run(self) -> TeacherNet:
        """Trains to the end and returns the network in eval mode."""
        if self.start_iter >= self.total:
            logger.info("All %d iterations are done already.", self.total)
        else:
            self.train(self.start_iter, self.total)
        return self.net.eval()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "batches": {"seed": self.batches.seed}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.batches.seed = self.data_loader.dataset.seed = state_dict["batches"]["seed"]

    @torch.no_grad()
    def describe(self, rows: Tensor) -> Iterator[TeacherFeatures]:
        """Features of training crops as the network in eval mode sees them, batch by batch."""
        was_training = self.net.training
        self.net.eval()
        try:
            for chunk in rows.split(_DESCRIBED_AT_ONCE):
                crops = torch.stack([self.crops[row] for row in chunk.tolist()])
                yield self.net.describe(crops.to(self.net.pixel_mean.device))
        finally:
            self.net.train(was_training)

    def export(self) -> str:
        """Writes the weights of the network; returns the path.

        ``<OUTPUT_DIR>/teacher.safetensors`` is for compute_embeddings.py. If the backbone is one of
        Detectron2's, ``backbone.pth`` holds its weights under the names of an FPN detector: a
        detector with the same network below its FPN can start from it (MODEL.WEIGHTS), as from
        ImageNet weights.
        """
        path = os.path.join(self.output_dir, WEIGHTS_FILE)
        self.net.save(path, {**self.source, "teacher_hash": self.net.weights_hash()})
        if getattr(self.net.backbone, "as_detector", False):
            weights = self.net.backbone.state_dict()
            start = {f"backbone.bottom_up.{k}": v for k, v in weights.items()}
            backbone = os.path.join(self.output_dir, "backbone.pth")
            write_atomically(backbone, lambda file: torch.save({"model": start}, file))
        return path


class _EpochStart(HookBase):
    """Lets the loss look at the whole training set before each epoch."""

    def before_step(self) -> None:
        epoch, place = divmod(self.trainer.iter, self.trainer.per_epoch)
        if place == 0:
            self.trainer.loss.start_epoch(epoch, self.trainer.describe)


def _build_loader(cfg: CfgNode, crops: Any, pids: Tensor, batches: IdentityBatches) -> DataLoader:
    return DataLoader(
        TrainingCrops(crops, pids, augmentations(cfg), batches.seed),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        worker_init_fn=_limit_threads,
        # the loader draws a seed for its workers: not from the stream of the training
        generator=torch.Generator().manual_seed(0),
    )


def _limit_threads(worker_id: int) -> None:
    """One thread per worker: they run side by side already."""
    torch.set_num_threads(1)
