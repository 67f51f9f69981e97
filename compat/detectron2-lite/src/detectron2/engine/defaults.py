# SPDX-License-Identifier: Apache-2.0
"""The default training program: command line, setup, trainer, and a predictor for single images."""

import argparse
import logging
import os
import sys
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
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch.nn.parallel import DistributedDataParallel

from . import hooks
from .train_loop import AMPTrainer, SimpleTrainer, TrainerBase


def create_ddp_model(model, *, fp16_compression=False, **kwargs):
    """Wraps a model for distributed training if there are several processes.

    Args:
        model: Model to wrap.
        fp16_compression: Whether to exchange gradients in half precision.
        **kwargs: Arguments of ``DistributedDataParallel``. ``device_ids`` is by default the GPU of
            this process; a model on the CPU needs ``device_ids=None``.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    distributed = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        distributed.register_comm_hook(None, fp16_compress_hook)
    return distributed


_EXAMPLES = """
Examples:

    Train on four GPUs of this machine:
    {prog} --config-file FILE --num-gpus 4

    Evaluate, with a key of the config changed:
    {prog} --config-file FILE --eval-only MODEL.WEIGHTS model_final.pth

    Train on two machines; the second one has --machine-rank 1:
    {prog} --config-file FILE --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
"""


def default_argument_parser(epilog=None):
    """Returns the argument parser of training programs.

    Args:
        epilog: Text after the help, by default examples.
    """
    # one of the dynamic ports, 49152 to 65535, by user, so that the jobs of two users differ
    port = 49152 + (os.getuid() if hasattr(os, "getuid") else 1) % 16384
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume from the last checkpoint in the output folder, if there is one; see "
        "`DefaultTrainer.resume_or_load()`",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate only")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine")
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="initialization URL of the processes; see "
        "https://pytorch.org/docs/stable/distributed.html",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        default=None,
        help="changes to the config, as pairs of PATH.KEY and VALUE at the end of the command",
    )
    return parser


def default_setup(cfg, args):
    """Sets up a job: logging, random seeds, and a copy of the config in the output folder.

    Args:
        cfg: Full config.
        args: Command line arguments. They are logged, and ``eval_only`` disables cuDNN's benchmark.
    """
    output_dir, rank = cfg.OUTPUT_DIR, comm.get_rank()
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info(f"Command line arguments: {args}")
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as f:
            content = f.read()
        logger.info(f"Contents of args.config_file={config_file}:\n{content}")
    if comm.is_main_process() and output_dir:
        logger.info(f"Running with full config:\n{cfg.dump()}")
        path = os.path.join(output_dir, "config.yaml")
        with PathManager.open(path, "w") as f:
            f.write(cfg.dump())
        logger.info(f"Full config saved to {path}")
    # different on every rank, so that the ranks draw different augmentations
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    precision = getattr(cfg, "FLOAT32_PRECISION", "")
    if precision:
        logger.info(f"Set float32 matmul precision to {precision}")
        torch.set_float32_matmul_precision(precision)


def default_writers(output_dir: str, max_iter: int | None = None):
    """Returns the default writers: log, ``metrics.json`` and, if installed, TensorBoard.

    Args:
        output_dir: Folder of the files.
        max_iter: Total number of iterations.
    """
    PathManager.mkdirs(output_dir)
    writers = [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
    ]
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        logging.getLogger(__name__).info(
            "tensorboard is not installed; event files will not be written"
        )
    else:
        writers.append(TensorboardXWriter(output_dir))
    return writers


class DefaultPredictor:
    """A model with its weights and its preprocessing, for one image at a time.

    It takes BGR images, converts them to cfg.INPUT.FORMAT and resizes them according to
    cfg.INPUT.{MIN,MAX}_SIZE_TEST.

    Args:
        cfg: Full config.

    Attributes:
        metadata: Metadata of the first data set in cfg.DATASETS.TEST, if there is one.
        model: The model.
        aug: The augmentation that resizes images.
        input_format: Channel order of the input of the model, "RGB" or "BGR".
    """

    def __init__(self, cfg):
        self.cfg = cfg = cfg.clone()
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ["RGB", "BGR"], (
            f"INPUT.FORMAT must be RGB or BGR, got {self.input_format!r}"
        )
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.model = build_model(cfg).eval()
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)

    @torch.no_grad()
    def __call__(self, original_image):
        """Runs the model on one image.

        Args:
            original_image: (H, W, 3) BGR array.

        Returns:
            The output of the model for the image, for example {"instances": Instances}.
        """
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        tensor = tensor.to(self.cfg.MODEL.DEVICE)
        return self.model([{"image": tensor, "height": height, "width": width}])[0]


class DefaultTrainer(TrainerBase):
    """The default trainer of a model from a config.

    It builds the model, optimizer, data loader and scheduler, registers the default hooks, loads
    weights or resumes (``resume_or_load``), and evaluates. Subclasses replace parts by overriding
    the ``build_*`` methods.

    Args:
        cfg: Full config.

    Attributes:
        scheduler: Learning rate scheduler.
        checkpointer: ``DetectionCheckpointer``.
        cfg: The config, scaled to the number of processes.
    """

    def __init__(self, cfg):
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            # logging is not set up yet
            setup_logger()
        self.cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter, self.max_iter = 0, self.cfg.SOLVER.MAX_ITER
        cfg = self.cfg
        # The order determines which random numbers each part draws.
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = trainer_class(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(self.cfg, self.optimizer)
        self.checkpointer = DetectionCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume=True):
        """Loads the state to start from.

        Args:
            resume: Whether to resume from the last checkpoint in the output folder, if there is
                one. Otherwise the weights in cfg.MODEL.WEIGHTS are loaded.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # The checkpoint holds the last completed iteration.
            self.start_iter = self.iter + 1

    def build_hooks(self):
        """Returns the default hooks."""
        cfg = self.cfg
        hook_list = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader_cfg = cfg.clone()
            loader_cfg.defrost()
            # saves the memory of the worker processes of a second loader
            loader_cfg.DATALOADER.NUM_WORKERS = 0
            loader = self.build_train_loader(loader_cfg)
            num_iter = cfg.TEST.PRECISE_BN.NUM_ITER
            hook_list.append(hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, num_iter))
        # before the evaluation, so that the weights are saved if it fails
        if comm.is_main_process():
            hook_list.append(
                hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            )

        def test_and_save_results():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        hook_list.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_save_results))
        # last, so that it writes the scalars of the other hooks
        if comm.is_main_process():
            hook_list.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return hook_list

    def build_writers(self):
        """Returns the event writers; see ``default_writers``."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self):
        """Trains from ``start_iter`` to ``max_iter``.

        Returns:
            On rank 0, the results of the last evaluation if cfg.TEST.EXPECTED_RESULTS is set.
        """
        super().train(self.start_iter, self.max_iter)
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        results = getattr(self, "_last_eval_results", None)
        assert results is not None, "TEST.EXPECTED_RESULTS is set, but no evaluation ran"
        verify_results(self.cfg, results)
        return results

    def run_step(self):
        """Runs one iteration."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self):
        """Returns the state of the trainer, its hooks, and its optimizer."""
        state = super().state_dict()
        state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict):
        """Loads the state of the trainer, its hooks, and its optimizer."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg):
        """Returns the model of the config and logs it."""
        model = build_model(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        """Returns the optimizer; see ``detectron2.solver.build_optimizer``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """Returns the scheduler; see ``detectron2.solver.build_lr_scheduler``."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        """Returns an infinite iterable of training batches."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Returns an iterable with a length over a test set."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        """Returns the evaluator of a test set. Subclasses override it."""
        raise NotImplementedError(
            "To evaluate with DefaultTrainer, override `build_evaluator()` or pass evaluators to "
            "`DefaultTrainer.test()`. To train without evaluation, set DATASETS.TEST to ()."
        )

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluates a model on every data set in cfg.DATASETS.TEST.

        Args:
            cfg: Full config.
            model: Model to evaluate.
            evaluators: Evaluator of each data set; by default from ``build_evaluator``.

        Returns:
            The results; a dict from data set to results if there are several data sets.
        """
        logger = logging.getLogger(__name__)
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
            data_loader = cls.build_test_loader(cfg, name)
            if evaluator is None:
                try:
                    evaluator = cls.build_evaluator(cfg, name)
                except NotImplementedError:
                    logger.warning(
                        f"{name} is not evaluated: pass evaluators to `test()` or implement "
                        f"`{cls.__name__}.build_evaluator` for it."
                    )
                    results[name] = {}
                    continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                assert isinstance(results[name], dict), (
                    f"{type(evaluator).__name__}.evaluate() must return a dict on rank 0, got "
                    f"{results[name]!r}"
                )
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg, num_workers: int):
        """Scales a config to a different number of workers.

        The batch size and the learning rate grow with the number of workers, and the numbers of
        iterations shrink.

        Args:
            cfg: Full config for cfg.SOLVER.REFERENCE_WORLD_SIZE workers; 0 disables the scaling.
            num_workers: Actual number of workers.

        Returns:
            A scaled copy of the config, or ``cfg`` itself.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        was_frozen, cfg = cfg.is_frozen(), cfg.clone()
        cfg.defrost()
        assert cfg.SOLVER.IMS_PER_BATCH % reference == 0, (
            f"SOLVER.IMS_PER_BATCH={cfg.SOLVER.IMS_PER_BATCH} is not a multiple of "
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
        """The model, wrapped for distributed training."""
        return self._trainer.model

    @model.setter
    def model(self, value):
        self._trainer.model = value

    @property
    def optimizer(self):
        """The optimizer."""
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, value):
        self._trainer.optimizer = value

    @property
    def data_loader(self):
        """The data loader of the training."""
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, value):
        self._trainer.data_loader = value
