# SPDX-License-Identifier: Apache-2.0
"""The default training program: arguments, set-up, trainer, and a predictor for single images."""

import logging
import weakref
from collections import OrderedDict

import detectron2.data.transforms as T
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.evaluation import (
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules

from . import hooks
from .program import (
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from .train_loop import AMPTrainer, SimpleTrainer, TrainerBase

__all__ = [
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "DefaultPredictor",
    "DefaultTrainer",
]


class DefaultPredictor:
    """A model with its weights and its input pipeline, for one image at a time.

    Images come in BGR, as `cv2.imread` gives them, and are converted to cfg.INPUT.FORMAT and
    resized by cfg.INPUT.{MIN,MAX}_SIZE_TEST.

    Attributes:
        metadata: that of the first data set in cfg.DATASETS.TEST; absent if there is none.
        model, aug, input_format: the model, the resizing, and the order of its channels.
    """

    def __init__(self, cfg):
        self.cfg = cfg = cfg.clone()
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ["RGB", "BGR"], (
            f"INPUT.FORMAT is {self.input_format!r}; the predictor takes RGB or BGR"
        )
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.model = build_model(cfg).eval()
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)

    @torch.no_grad()
    def __call__(self, original_image):
        """Run the model on one image.

        Args:
            original_image: (H, W, 3) BGR array.

        Returns:
            The model's output for it, for example {"instances": Instances}.
        """
        return self.model([self._to_input(original_image)])[0]

    def _to_input(self, bgr_image) -> dict:
        """The model's input: the resized image, and the size to give the results in."""
        channels = slice(None, None, -1 if self.input_format == "RGB" else 1)
        image = bgr_image[:, :, channels]
        resized = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {
            "image": tensor.to(self.cfg.MODEL.DEVICE),
            "height": image.shape[0],
            "width": image.shape[1],
        }


class DefaultTrainer(TrainerBase):
    """The standard training of a model from a config.

    It builds model, optimizer, loader and schedule, registers the usual hooks, loads weights or
    resumes in `resume_or_load`, and evaluates. Parts are replaced by overriding the `build_*`
    methods.

    Attributes:
        scheduler: the learning rate schedule.
        checkpointer: the `DetectionCheckpointer`.
        cfg: the config.
    """

    def __init__(self, cfg):
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            # Nobody has set up logging: without this the training would be silent.
            setup_logger()
        self.cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter, self.max_iter = 0, self.cfg.SOLVER.MAX_ITER
        self._trainer = self._build_inner_trainer()
        self.scheduler = self.build_lr_scheduler(self.cfg, self.optimizer)
        self.checkpointer = DetectionCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    def _build_inner_trainer(self) -> SimpleTrainer:
        """The trainer whose step this one runs; it owns model, optimizer and loader."""
        cfg = self.cfg
        # The order fixes which random numbers each part draws.
        bare_model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, bare_model)
        loader = self.build_train_loader(cfg)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        return trainer_class(
            create_ddp_model(bare_model, broadcast_buffers=False), loader, optimizer
        )

    def resume_or_load(self, resume=True):
        """Load the state to start from.

        Args:
            resume: if the output folder has a last checkpoint, load all of it and go on after its
                iteration. Otherwise load the weights in cfg.MODEL.WEIGHTS and start at 0.
        """
        checkpointer = self.checkpointer
        checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        resumed = resume and checkpointer.has_checkpoint()
        if resumed:
            # The checkpoint names the iteration that was done last.
            self.start_iter = self.iter + 1

    def build_hooks(self):
        """The hooks for timing, schedule, precise batch norm, checkpoints, evaluation, writing."""
        cfg = self.cfg
        hook_list = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            hook_list.append(self._build_precise_bn_hook())
        # Before the evaluation: should that fail, the weights are safe.
        if comm.is_main_process():
            hook_list.append(
                hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            )

        hook_list.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._test_and_remember))
        # Last: what the other hooks put is written in the same iteration.
        if comm.is_main_process():
            hook_list.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return hook_list

    def _build_precise_bn_hook(self) -> hooks.PreciseBN:
        cfg = self.cfg.clone()
        cfg.defrost()
        # Workers of this second loader would take memory all through the training.
        cfg.DATALOADER.NUM_WORKERS = 0
        loader, num_iter = self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, num_iter)

    def _test_and_remember(self):
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self):
        """The event writers; see `default_writers`."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self):
        """Train from `start_iter` to `max_iter`.

        Returns:
            The last evaluation's results if cfg.TEST.EXPECTED_RESULTS is set, on rank 0.
        """
        super().train(self.start_iter, self.max_iter)
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        results = getattr(self, "_last_eval_results", None)
        assert results is not None, "TEST.EXPECTED_RESULTS is set, but no evaluation ran"
        verify_results(self.cfg, results)
        return results

    def run_step(self):
        inner = self._trainer
        inner.iter = self.iter
        inner.run_step()

    def state_dict(self):
        state = super().state_dict()
        state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg):
        """The model of the config; also logs it."""
        model = build_model(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        """The optimizer; see `detectron2.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """The schedule; see `detectron2.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        """An endless iterable of training batches."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """An iterable, with a length, over one test set."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        """The evaluator of one test set; to be overridden."""
        raise NotImplementedError(
            "DefaultTrainer does not know how to evaluate: override its `build_evaluator()`, or "
            "give evaluators to `DefaultTrainer.test()`. Programs that only train may set "
            "DATASETS.TEST to ()."
        )

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate a model on every data set in cfg.DATASETS.TEST.

        Args:
            cfg: the config.
            model: a model that has its weights.
            evaluators: one for each data set; built by `build_evaluator` when None.

        Returns:
            The results, by data set if there are several.
        """
        names = cfg.DATASETS.TEST
        if evaluators is None:
            evaluators = [None] * len(names)
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        assert len(evaluators) == len(names), (
            f"{len(evaluators)} evaluators for {len(names)} data sets in DATASETS.TEST"
        )
        results = OrderedDict()
        for name, evaluator in zip(names, evaluators, strict=True):
            results[name] = cls._test_on(cfg, model, name, evaluator)
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def _test_on(cls, cfg, model, dataset_name: str, evaluator: DatasetEvaluator | None) -> dict:
        """Results on one data set; empty if nobody knows how to evaluate it."""
        logger = logging.getLogger(__name__)
        data_loader = cls.build_test_loader(cfg, dataset_name)
        if evaluator is None:
            try:
                evaluator = cls.build_evaluator(cfg, dataset_name)
            except NotImplementedError:
                logger.warning(
                    f"{dataset_name} is not evaluated: `{cls.__name__}.build_evaluator` has no "
                    "evaluator for it, and `test()` was given none."
                )
                return {}
        results = inference_on_dataset(model, data_loader, evaluator)
        if comm.is_main_process():
            assert isinstance(results, dict), (
                f"on rank 0 {type(evaluator).__name__}.evaluate() has to return a dict, not "
                f"{results!r}"
            )
            logger.info(f"Evaluation results for {dataset_name} in csv format:")
            print_csv_format(results)
        return results

    @staticmethod
    def auto_scale_workers(cfg, num_workers: int):
        """Fit a config that was made for another number of workers.

        The batch grows in proportion so that each worker's share stays; the learning rate grows
        with it, and the iterations shrink.

        Args:
            cfg: cfg.SOLVER.REFERENCE_WORLD_SIZE names the workers it was made for; 0 switches the
                scaling off.
            num_workers: the workers there are.

        Returns:
            A new config, or `cfg` itself where nothing is to be done.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        was_frozen, cfg = cfg.is_frozen(), cfg.clone()
        cfg.defrost()
        assert cfg.SOLVER.IMS_PER_BATCH % reference == 0, (
            f"SOLVER.IMS_PER_BATCH={cfg.SOLVER.IMS_PER_BATCH} is no multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE={reference}"
        )
        scale = num_workers / reference
        solver = cfg.SOLVER
        solver.REFERENCE_WORLD_SIZE = num_workers
        solver.BASE_LR = solver.BASE_LR * scale
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        for section, key in (
            (solver, "MAX_ITER"),
            (solver, "WARMUP_ITERS"),
            (solver, "CHECKPOINT_PERIOD"),
            (cfg.TEST, "EVAL_PERIOD"),
        ):
            section[key] = round(section[key] / scale)
        logging.getLogger(__name__).info(
            f"Auto-scaling the config to batch_size={solver.IMS_PER_BATCH}, "
            f"learning_rate={solver.BASE_LR}, max_iter={solver.MAX_ITER}, "
            f"warmup={solver.WARMUP_ITERS}."
        )
        if was_frozen:
            cfg.freeze()
        return cfg

    @property
    def model(self):
        return self._trainer.model

    @model.setter
    def model(self, value):
        self._trainer.model = value

    @property
    def optimizer(self):
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, value):
        self._trainer.optimizer = value

    @property
    def data_loader(self):
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, value):
        self._trainer.data_loader = value
