# SPDX-License-Identifier: Apache-2.0
"""A tiny training with DefaultTrainer, and conversion of its results to JSON."""

import logging
import re
from contextlib import contextmanager

import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.env import seed_all_rng
from torch import nn


@contextmanager
def log_lines(name="detectron2"):
    """Collects the messages of a logger, with placeholders for times and paths."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            text = re.sub(r"\d+:\d\d:\d\d(\.\d+)?", "<time>", record.getMessage())
            text = re.sub(r"\d+\.\d+ s ?/ ?it", "<speed> s / it", text)
            lines.append(re.sub(r"/\S*/", "<dir>/", text))

    logger = logging.getLogger(name)
    handler, level, propagate = Handler(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def to_json(value):
    """Converts nested tensors to JSON types."""
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {"dict": [[key, to_json(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(value):
    """Inverts ``to_json``."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict) and "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value["dict"]}
    return value


if "EngineParityNet" not in META_ARCH_REGISTRY:

    @META_ARCH_REGISTRY.register()
    class EngineParityNet(nn.Module):
        """Two linear layers around a batch norm; returns two losses."""

        def __init__(self, cfg):
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.norm = nn.BatchNorm1d(4)
            self.second = nn.Linear(4, 2)

        def forward(self, batch):
            if not self.training:
                return [{} for _ in batch]
            x = torch.stack([item["image"] for item in batch])
            y = self.second(self.norm(self.first(x)))
            return {"loss_square": (y**2).mean(), "loss_absolute": y.abs().mean()}


class _Noise:
    """Yields seeded batches of four random vectors."""

    def __init__(self, length=None):
        self.length = length
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return self.length

    def __iter__(self):
        count = 0
        while self.length is None or count < self.length:
            count += 1
            yield [{"image": torch.randn(3, generator=self.generator)} for _ in range(4)]


class _Count(DatasetEvaluator):
    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(inputs)

    def evaluate(self):
        return {"bbox": {"AP": float(self.count), "AP50": 2.0}}


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return _Noise()

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return _Noise(3)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return _Count()

    def build_writers(self):
        return [w for w in super().build_writers() if type(w).__name__ != "TensorboardXWriter"]


def train(folder, max_iter, resume):
    """Trains with DefaultTrainer; returns the trainer and its log lines."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "EngineParityNet", "cpu", ""
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = ("noise",), 8
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = max_iter, (10,), 4
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.05, 0.0
    cfg.SOLVER.CHECKPOINT_PERIOD = 6
    seed_all_rng(3)
    with log_lines() as lines:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
    return trainer, lines
