# SPDX-License-Identifier: Apache-2.0
"""Extends ``DefaultTrainer`` for person search."""

import json
import logging
import math
import os
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    TrainerBase,
    create_ddp_model,
)
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator, inference_context
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import ResNet
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from torch.nn.parallel import DistributedDataParallel

from person_search.data import build_mapper, training_card
from person_search.engine.checkpoint import (
    AtomicCheckpointer,
    CheckpointWriteError,
    write_safely,
)
from person_search.engine.data_checks import (
    check_test_sets,
    resolve_num_pids,
    warn_of_shared_images,
)
from person_search.engine.ema import FINAL_NAME, AveragedWeights, EMAHook
from person_search.engine.hooks import (
    BestModelCheckpointer,
    FinalCardWriter,
    ResumableCheckpointer,
)
from person_search.engine.optimizer import build_optimizer
from person_search.engine.rng import isolated_rng
from person_search.engine.tracking import (
    Tracker,
    build_trackers,
    check_tracking,
    draws_evaluation,
    record_start,
    show_evaluations,
)
from person_search.engine.train_loader import build_train_loader
from person_search.engine.train_step import (
    MAX_AMP_SCALE,
    MIN_AMP_SCALE,
    AMPStepTrainer,
    StepTrainer,
)
from person_search.evaluation import PersonSearchEvaluator
from person_search.interface import LoadsInitialWeights
from person_search.modeling.optimize import optimize_for_inference
from person_search.utils.backend import backend_name

BEST_METRIC = "search/mAP"
AMP_TYPES = ("float16", "bfloat16")


class PersonSearchTrainer(DefaultTrainer):
    """Trains and evaluates a :class:`person_search.interface.PersonSearchModel`.

    It differs from ``DefaultTrainer`` in these points:

    - Data are mapped by ``cfg.DATALOADER.MAPPER`` and scored by ``PersonSearchEvaluator``.
    - ``MODEL.REID.NUM_PIDS`` is filled in from the training set, or checked against it.
    - An unreadable test set or protocol ends the training before it begins.
    - SGD or AdamW, full-model gradient clipping, gradient accumulation.
    - A resumed training equals the uninterrupted one bit for bit on a CPU (some CUDA kernels are
      nondeterministic), and checkpoints are never half written; see
      :mod:`person_search.engine.hooks`.
    - A loss that is not finite ends all processes with one message and is never part of a
      checkpoint; see :mod:`person_search.engine.divergence`.
    - The best model by search mAP is kept as ``model_best.pth`` if ``TEST.EVAL_PERIOD`` > 0.
    - Every file has a model card; that of evaluated weights has their results.
    - With ``SOLVER.EMA.ENABLED``, a moving average of the weights is evaluated and kept as the
      best model; see :mod:`person_search.engine.ema`.
    - An evaluation does not change the random numbers of the training, and is repeatable.
    - Several processes also run on a CPU.
    - Each start is recorded in ``run.json``; Weights & Biases and MLflow are supported, and drawn
      evaluations; see :mod:`person_search.engine.tracking`.

    Args:
        cfg: Config with the keys of ``add_person_search_config``.

    Raises:
        ValueError: If settings contradict each other, the data or the machine.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer.__init__ is skipped: it has no hooks for the checkpointer and the training
        # step, and its distributed wrapper requires a GPU. The other methods are inherited.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        if cfg.SOLVER.MAX_ITER < 1:
            raise ValueError(
                f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}; a training takes at least 1 iteration. "
                "To evaluate without training, use --eval-only."
            )
        if cfg.SOLVER.CHECKPOINT_PERIOD < 1:
            raise ValueError(
                f"SOLVER.CHECKPOINT_PERIOD is {cfg.SOLVER.CHECKPOINT_PERIOD}; it must be at least "
                "1. A period above SOLVER.MAX_ITER writes the final checkpoint only."
            )
        if cfg.SOLVER.EMA.ENABLED and cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError(
                "SOLVER.EMA.ENABLED and TEST.PRECISE_BN.ENABLED are both True: precise statistics "
                "are those of the raw weights, but the average is evaluated. Set one to False."
            )
        check_tracking(cfg)
        cfg = resolve_num_pids(scale_to_processes(cfg))
        warn_of_shared_images(cfg)
        check_test_sets(cfg, lambda name: self.build_evaluator(cfg, name))
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        # the attribute that the methods of DefaultTrainer use, and a key of the checkpoint
        self._trainer = build_step_trainer(cfg, wrap_for_processes(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(cfg, model, trainer=weakref.proxy(self))
        if comm.is_main_process():
            dim = self.checkpointer.embed_dim
            self.checkpointer.card = replace(training_card(cfg), embed_dim=dim)
        self.trackers: list[Tracker] = []
        self.average = None
        if cfg.SOLVER.EMA.ENABLED:
            self.average = AveragedWeights(model, cfg.SOLVER.EMA.DECAY)
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_checkpointer(
        cls, cfg: CfgNode, model: torch.nn.Module, **kwargs: Any
    ) -> AtomicCheckpointer:
        """Builds the checkpointer of ``cfg.OUTPUT_DIR``; ``kwargs`` go to its constructor."""
        return AtomicCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=cfg.MODEL.ALLOW_PARTIAL_LOAD,
            method=cfg.MODEL.META_ARCHITECTURE,
            embed_dim=getattr(model, "embed_dim", cfg.MODEL.REID.EMBED_DIM),
            **kwargs,
        )

    def build_hooks(self) -> list[HookBase]:
        """Builds Detectron2's hooks with another checkpointer, EMA and the best model."""
        cfg = self.cfg
        hooks = [h for h in super().build_hooks() if not isinstance(h, PeriodicCheckpointer)]
        evaluation = next(i for i, h in enumerate(hooks) if isinstance(h, EvalHook))
        tested = self.average.module if self.average else self.model
        # its card gets the results of the evaluated weights
        saver = self.build_checkpointer(cfg, tested, tag_last=False)
        saver.card = self.checkpointer.card
        averages = []
        if self.average:
            # the checkpointer's model is without the distributed wrapper
            averages = [EMAHook(self.average, self.checkpointer.model, saver)]
        hooks[evaluation] = EvalHook(cfg.TEST.EVAL_PERIOD, lambda: self._evaluate(tested, saver))
        if cfg.DATASETS.TEST and comm.is_main_process():
            final = FINAL_NAME if self.average else "model_final"
            hooks.insert(evaluation + 1, FinalCardWriter(saver, f"{final}.pth"))
        if cfg.TEST.EVAL_PERIOD > 0 and cfg.DATASETS.TEST and comm.is_main_process():
            several = len(cfg.DATASETS.TEST) > 1  # then results are nested by data set
            best = BestModelCheckpointer(
                cfg.TEST.EVAL_PERIOD,
                saver,
                f"{cfg.DATASETS.TEST[0]}/{BEST_METRIC}" if several else BEST_METRIC,
            )
            hooks.insert(evaluation + 1, best)
        saving = ResumableCheckpointer(
            self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_ON_SIGNAL
        )
        hooks[evaluation:evaluation] = [*averages, saving]
        return hooks

    def build_writers(self) -> list[EventWriter]:
        """Builds Detectron2's writers and those of TRACKING.SERVICES."""
        self.trackers = build_trackers(self.cfg)
        return [*self.trackers, *super().build_writers()]

    def train(self) -> Any:
        """Records the start and trains; returns the last results of the main process."""
        if comm.is_main_process() and self.cfg.OUTPUT_DIR:
            record_start(self.cfg, self.start_iter)
        return super().train()

    def _evaluate(self, model: torch.nn.Module, saver: AtomicCheckpointer) -> dict[str, Any]:
        names, card = self.cfg.DATASETS.TEST, saver.card
        evaluators = [self.build_evaluator(self.cfg, name) for name in names]
        # the attribute that DefaultTrainer.train looks at
        self._last_eval_results = results = self.test(self.cfg, model, evaluators)
        if results and draws_evaluation(self.cfg, self.iter):
            show_evaluations(evaluators, names, self.trackers, self.iter)
        if results and card is not None:
            by_name = results if len(names) > 1 else {names[0]: results}
            metrics = {
                name: {task: _finite(values) for task, values in tasks.items()}
                for name, tasks in by_name.items()
            }
            threshold = self.cfg.TEST.PERSON_SEARCH.SCORE_THRESH
            saver.card = replace(card, metrics=metrics, score_thresh=threshold)
        return results

    def resume_or_load(self, resume: bool = True) -> None:
        """Continues the training found in ``cfg.OUTPUT_DIR``, or starts from ``MODEL.WEIGHTS``.

        A training that starts at iteration 0 also calls the hook
        :class:`person_search.interface.LoadsInitialWeights` of the model.

        Args:
            resume: Whether to continue from the newest intact checkpoint in ``cfg.OUTPUT_DIR``, if
                there is one.
        """
        path = self.checkpointer.find_resumable() if resume else ""
        if path:
            self.iter = -1  # for a file that has only weights
            rest = self.checkpointer.load(path)
            self.start_iter = max(self.iter, rest.get("iteration", -1)) + 1
            return
        if resume:
            logging.getLogger(__name__).info(
                "--resume: no checkpoint in %s yet; starting at iteration 0.", self.cfg.OUTPUT_DIR
            )
        self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        model = self.checkpointer.model  # without the distributed wrapper
        if isinstance(model, LoadsInitialWeights):
            model.load_initial_weights()
        warn_of_frozen_random_weights(self.cfg, model)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores iteration, hooks and optimizer."""
        step = {"iteration": state_dict["iteration"]}
        super().load_state_dict({"_trainer": step, **state_dict})

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Builds the optimizer of ``SOLVER.OPTIMIZER``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Builds the loader of ``DATASETS.TRAIN``."""
        return build_train_loader(cfg, build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Builds the loader of a test set."""
        return build_detection_test_loader(
            cfg, dataset_name, mapper=build_mapper(cfg, is_train=False)
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Builds the evaluator of a test set."""
        return PersonSearchEvaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluates on ``cfg.DATASETS.TEST`` as Detectron2 does, and writes ``results.json``.

        Args:
            cfg: Config of the evaluation.
            model: Model to evaluate. It is not changed: a copy of its backbone is optimized for
                inference, in the precision ``TEST.PRECISION``.
            evaluators: One evaluator per test set. Default: those of :meth:`build_evaluator`.

        Returns:
            ``{task: {metric: percent}}``, nested by data set if there are several. Empty in all but
            the main process.
        """
        if isinstance(model, DistributedDataParallel):
            model = model.module
        with isolated_rng(max(cfg.SEED, 0)), inference_context(model):
            optimized = optimize_for_inference(model, cfg.TEST.PRECISION)
            results = super().test(cfg, optimized, evaluators)
        if comm.is_main_process() and cfg.OUTPUT_DIR:
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
            record = {"backend": backend_name(), "datasets": list(cfg.DATASETS.TEST), **results}
            text = json.dumps(record, indent=2, default=float)
            path = os.path.join(cfg.OUTPUT_DIR, "results.json")
            logger = logging.getLogger(__name__)
            try:
                write_safely(path, text.encode())
                logger.info("The results are in %s", path)
            except CheckpointWriteError as e:  # the log has the results; the training continues
                logger.error("%s", e)
        return results


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics that are numbers, with two decimals."""
    return {k: round(float(v), 2) for k, v in values.items() if math.isfinite(v)}


def scale_to_processes(cfg: CfgNode) -> CfgNode:
    """Scales batch size, learning rate and schedule to the number of processes as Detectron2 does.

    Raises:
        ValueError: If SOLVER.REFERENCE_WORLD_SIZE does not divide SOLVER.IMS_PER_BATCH.
    """
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference < 0 or (reference > 0 and batch % reference):
        raise ValueError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}: the number of GPUs that the config is "
            f"made for must divide SOLVER.IMS_PER_BATCH ({batch}); 0 switches the scaling off."
        )
    return DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())


def build_step_trainer(
    cfg: CfgNode, model: torch.nn.Module, loader: Any, optimizer: torch.optim.Optimizer
) -> StepTrainer:
    """Builds the training step, in full or mixed precision.

    Args:
        cfg: Config with SOLVER.ACCUMULATION_STEPS and SOLVER.AMP.
        model: Model, wrapped for several processes.
        loader: Training loader.
        optimizer: Optimizer of the model.

    Raises:
        ValueError: If SOLVER.ACCUMULATION_STEPS is below 1, or SOLVER.AMP has an unknown type, an
            unusable loss scale, or float16 without a GPU.
    """
    parts, amp = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.AMP
    if parts < 1:
        raise ValueError(f"SOLVER.ACCUMULATION_STEPS is {parts}; it must be at least 1.")
    if amp.DTYPE not in AMP_TYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}; known: {AMP_TYPES}.")
    settings = {"parts": parts, "output_dir": cfg.OUTPUT_DIR}
    if amp.ENABLED and amp.DTYPE == "bfloat16":
        return StepTrainer(model, loader, optimizer, autocast=torch.bfloat16, **settings)
    if not amp.ENABLED:
        return StepTrainer(model, loader, optimizer, **settings)
    if not torch.cuda.is_available():
        raise ValueError(
            "SOLVER.AMP.ENABLED with SOLVER.AMP.DTYPE float16 needs a CUDA device; on a CPU, set "
            "DTYPE to bfloat16 or ENABLED to False."
        )
    scale = amp.INIT_SCALE
    if not MIN_AMP_SCALE <= scale <= MAX_AMP_SCALE:
        raise ValueError(
            f"SOLVER.AMP.INIT_SCALE is {scale}; it must be within {MIN_AMP_SCALE:g} and "
            f"{MAX_AMP_SCALE:g}. PyTorch's own is 65536."
        )
    scaler = torch.amp.GradScaler("cuda", init_scale=scale)
    return AMPStepTrainer(model, loader, optimizer, grad_scaler=scaler, **settings)


def wrap_for_processes(model: torch.nn.Module) -> torch.nn.Module:
    """Wraps a model for distributed training if there are several processes, also on a CPU."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    where = {"device_ids": None} if on_cpu else {}
    return create_ddp_model(model, broadcast_buffers=False, **where)


def warn_of_frozen_random_weights(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Logs one line if a training is about to start with random weights that cannot learn.

    Detectron2's defaults freeze the first stages of a ResNet and the statistics of its norms. Both
    require pre-trained weights, which only MODEL.WEIGHTS provides. Other backbones with frozen
    weights of their own, such as a diffusion model, are not checked.

    Args:
        cfg: Config of the training.
        model: Model with its initial weights, whose ``backbone`` is checked.
    """
    backbone = getattr(model, "backbone", None)
    if cfg.MODEL.WEIGHTS or not isinstance(backbone, torch.nn.Module):
        return
    faults, remedies = [], []
    frozen = {
        id(p): p.numel()
        for module in backbone.modules()
        if isinstance(module, ResNet)
        for p in module.parameters()
        if not p.requires_grad
    }
    if frozen and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        faults.append(
            f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} freezes "
            f"{sum(frozen.values()):,} of its parameters"
        )
        remedies.append("MODEL.BACKBONE.FREEZE_AT 0")
    idle = sum(_is_untouched(m) for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d))
    # freezing turns other norms into FrozenBN, too; without FREEZE_AT they are trained
    if idle and cfg.MODEL.RESNETS.NORM == "FrozenBN":
        faults.append(f"{idle} layers of MODEL.RESNETS.NORM FrozenBN normalize nothing")
        remedies.append("MODEL.RESNETS.NORM BN (SyncBN on several GPUs)")
    if faults:
        logging.getLogger(__name__).warning(
            "MODEL.WEIGHTS is empty, so the backbone starts from random weights, but "
            f"{' and '.join(faults)}. Set MODEL.WEIGHTS to pre-trained weights, e.g. "
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl, or train from scratch with "
            f"{' and '.join(remedies)}."
        )


def _is_untouched(norm: FrozenBatchNorm2d) -> bool:
    """Returns whether a layer has its initial values: mean 0, variance 1 (or 1 - eps)."""
    expected = ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1))
    return all(torch.allclose(x, torch.full_like(x, y), atol=1e-4) for x, y in expected)
