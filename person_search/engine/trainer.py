# SPDX-License-Identifier: Apache-2.0
"""The trainer of person search models: Detectron2's, with what it lacks."""

import json
import logging
import os
import weakref
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
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from person_search.data import build_mapper
from person_search.engine.checkpoint import (
    AtomicCheckpointer,
    CheckpointWriteError,
    write_safely,
)
from person_search.engine.data_checks import check_test_sets
from person_search.engine.ema import AveragedWeights, EMAHook
from person_search.engine.hooks import BestModelCheckpointer, ResumableCheckpointer
from person_search.engine.identities import resolve_num_pids
from person_search.engine.initial_weights import warn_of_frozen_random_weights
from person_search.engine.optimizer import build_optimizer
from person_search.engine.rng import isolated_rng
from person_search.engine.train_loader import build_train_loader
from person_search.engine.train_step import (
    MAX_AMP_SCALE,
    MIN_AMP_SCALE,
    AMPStepTrainer,
    StepTrainer,
)
from person_search.evaluation import PersonSearchEvaluator
from person_search.utils.backend import backend_name

BEST_METRIC = "search/mAP"


class PersonSearchTrainer(DefaultTrainer):
    """Trains and evaluates any model of the registry that follows the person search interface.

    It differs from ``DefaultTrainer`` in these points:

    - data come through ``cfg.DATALOADER.MAPPER``, and are scored by ``PersonSearchEvaluator``;
    - ``MODEL.REID.NUM_PIDS`` is filled in from the training set, or checked against it;
    - a test set or protocol that cannot be read ends the training before it begins;
    - SGD or AdamW, full-model gradient clipping, gradient accumulation;
    - a resumed training is bit for bit the one that was interrupted (on a CPU; a GPU has kernels of
      its own will), checkpoints are never half written, see :mod:`person_search.engine.hooks`;
    - a loss that is not finite ends all processes with one message, and never gets into a
      checkpoint, see :mod:`person_search.engine.divergence`;
    - the best model by search mAP is kept as ``model_best.pth`` if ``TEST.EVAL_PERIOD`` > 0;
    - with ``SOLVER.EMA.ENABLED``, a moving average of the weights is what is evaluated and kept as
      the best, see :mod:`person_search.engine.ema`;
    - an evaluation leaves the training's random numbers alone, and always uses the same ones;
    - several processes also work on a CPU.

    Args:
        cfg: with the keys of ``add_person_search_config``.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer.__init__ is passed over: it offers no way to choose the checkpointer and
        # the step, and its distributed wrapper asks for a GPU. Its other methods are inherited.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = resolve_num_pids(scale_to_processes(cfg))
        check_test_sets(cfg, lambda name: self.build_evaluator(cfg, name))
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        # the attribute that DefaultTrainer's methods work on, and a key of the checkpoint
        self._trainer = build_step_trainer(cfg, wrap_for_processes(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(cfg, model, trainer=weakref.proxy(self))
        self.average = AveragedWeights(model, cfg.SOLVER.EMA.DECAY) if _use_ema(cfg) else None
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_checkpointer(
        cls, cfg: CfgNode, model: torch.nn.Module, **kwargs: Any
    ) -> AtomicCheckpointer:
        """Builds the checkpointer of ``cfg.OUTPUT_DIR``; ``kwargs`` go to its constructor."""
        return AtomicCheckpointer(
            model, cfg.OUTPUT_DIR, allow_partial=cfg.MODEL.ALLOW_PARTIAL_LOAD, **kwargs
        )

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, with ours in place of the checkpointer and one for the best model."""
        cfg = self.cfg
        hooks = [h for h in super().build_hooks() if not isinstance(h, PeriodicCheckpointer)]
        evaluation = next(i for i, h in enumerate(hooks) if isinstance(h, EvalHook))
        tested = self.average.module if self.average else self.model
        averages = []
        if self.average:
            raw = self.checkpointer.model  # without the distributed wrapper
            saver = self.build_checkpointer(cfg, tested, tag_last=False)
            averages = [EMAHook(self.average, raw, saver)]
            hooks[evaluation] = EvalHook(cfg.TEST.EVAL_PERIOD, lambda: self._evaluate(tested))
        if cfg.TEST.EVAL_PERIOD > 0 and cfg.DATASETS.TEST and comm.is_main_process():
            several = len(cfg.DATASETS.TEST) > 1  # then results are nested by data set
            best = BestModelCheckpointer(
                cfg.TEST.EVAL_PERIOD,
                self.build_checkpointer(cfg, tested, tag_last=False),
                f"{cfg.DATASETS.TEST[0]}/{BEST_METRIC}" if several else BEST_METRIC,
            )
            hooks.insert(evaluation + 1, best)
        saving = ResumableCheckpointer(
            self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_ON_SIGNAL
        )
        hooks[evaluation:evaluation] = [*averages, saving]
        return hooks

    def _evaluate(self, model: torch.nn.Module) -> dict[str, Any]:
        # the attribute that DefaultTrainer.train looks at
        self._last_eval_results = self.test(self.cfg, model)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Continues the training found in ``cfg.OUTPUT_DIR``, or starts from ``MODEL.WEIGHTS``.

        Args:
            resume: look for a checkpoint in ``cfg.OUTPUT_DIR`` first. A damaged last one is passed
                over for the newest intact one. Without any, the training starts at iteration 0:
                with ``MODEL.WEIGHTS``, and for what these lack with the model's own
                ``load_initial_weights()``, if it has such a method.
        """
        path = self.checkpointer.find_resumable() if resume else ""
        if path:
            self.checkpointer.load(path)
            self.start_iter = self.iter + 1  # self.iter is now the last one that was done
            return
        if resume:
            logging.getLogger(__name__).info(
                "--resume: no checkpoint in %s yet, starting at iteration 0.", self.cfg.OUTPUT_DIR
            )
        self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        model = self.checkpointer.model  # without the distributed wrapper
        if hasattr(model, "load_initial_weights"):
            model.load_initial_weights()
        warn_of_frozen_random_weights(self.cfg, model)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg, build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(
            cfg, dataset_name, mapper=build_mapper(cfg, is_train=False)
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return PersonSearchEvaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluates on ``cfg.DATASETS.TEST`` as Detectron2 does.

        Returns:
            ``{task: {metric: percent}}``, by data set if there are several; also written to
            ``results.json`` in ``cfg.OUTPUT_DIR``. Empty in all but the main process.
        """
        with isolated_rng(max(cfg.SEED, 0)):
            results = super().test(cfg, model, evaluators)
        if comm.is_main_process() and cfg.OUTPUT_DIR:
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
            record = {"backend": backend_name(), "datasets": list(cfg.DATASETS.TEST), **results}
            text = json.dumps(record, indent=2, default=float)
            path = os.path.join(cfg.OUTPUT_DIR, "results.json")
            logger = logging.getLogger(__name__)
            try:
                write_safely(path, text.encode())
                logger.info("The results are in %s", path)
            except CheckpointWriteError as e:  # the figures are in the log; a training goes on
                logger.error("%s", e)
        return results


def scale_to_processes(cfg: CfgNode) -> CfgNode:
    """Detectron2's scaling of batch, learning rate and schedule by SOLVER.REFERENCE_WORLD_SIZE.

    Raises:
        ValueError: SOLVER.IMS_PER_BATCH cannot be divided by it.
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
    """Builds what runs one training step, plain or AMP.

    Raises:
        ValueError: SOLVER.ACCUMULATION_STEPS is below 1, or AMP is asked for without a GPU or with
            a loss scale that is none.
    """
    parts, amp = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.AMP.ENABLED
    if parts < 1:
        raise ValueError(f"SOLVER.ACCUMULATION_STEPS is {parts}; it must be at least 1.")
    if amp and not torch.cuda.is_available():
        raise ValueError("SOLVER.AMP.ENABLED needs a CUDA device; set it to False on a CPU.")
    settings = {"parts": parts, "output_dir": cfg.OUTPUT_DIR}
    if not amp:
        return StepTrainer(model, loader, optimizer, **settings)
    scale = cfg.SOLVER.AMP.INIT_SCALE
    if not MIN_AMP_SCALE <= scale <= MAX_AMP_SCALE:
        raise ValueError(
            f"SOLVER.AMP.INIT_SCALE is {scale}; it must be within {MIN_AMP_SCALE:g} and "
            f"{MAX_AMP_SCALE:g}. PyTorch's own is 65536."
        )
    scaler = torch.amp.GradScaler("cuda", init_scale=scale)
    return AMPStepTrainer(model, loader, optimizer, grad_scaler=scaler, **settings)


def _use_ema(cfg: CfgNode) -> bool:
    if cfg.SOLVER.EMA.ENABLED and cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError(
            "SOLVER.EMA.ENABLED and TEST.PRECISE_BN.ENABLED are both True: precise statistics are "
            "those of the raw weights, which are not the ones that are tested. Set one to False."
        )
    return cfg.SOLVER.EMA.ENABLED


def wrap_for_processes(model: torch.nn.Module) -> torch.nn.Module:
    """Wraps a model for distributed training if there are several processes; on a CPU as well."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    where = {"device_ids": None} if on_cpu else {}
    return create_ddp_model(model, broadcast_buffers=False, **where)
