# SPDX-License-Identifier: Apache-2.0
"""Pieces of a training program: command line, set-up, writers, distributed model.

Users import them from `detectron2.engine`.
"""

import argparse
import logging
import os
import sys

import torch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch.nn.parallel import DistributedDataParallel


def create_ddp_model(model, *, fp16_compression=False, **kwargs):
    """Wrap a model for distributed training, if there is more than one process.

    Args:
        model: a module.
        fp16_compression: exchange gradients in half precision.
        kwargs: arguments of `DistributedDataParallel`. `device_ids` is this process's GPU unless
            given; a model on the CPU needs `device_ids=None`.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    distributed = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        # Imported here: not every build of PyTorch has it.
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        distributed.register_comm_hook(None, fp16_compress_hook)
    return distributed


_EXAMPLES = """
How to call it:

    {prog} --config-file FILE --num-gpus 4
        trains on four GPUs of this machine
    {prog} --config-file FILE --eval-only MODEL.WEIGHTS model_final.pth
        evaluates; MODEL.WEIGHTS, like any other key of the config, is set at the end
    {prog} --config-file FILE --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
        is one half of a training on two machines; the other half has --machine-rank 1
"""


def _port_of_user() -> int:
    """One of the dynamic ports, 49152 to 65535, by user: two people's jobs do not meet."""
    user = os.getuid() if hasattr(os, "getuid") else 1
    return 49152 + user % 16384


def default_argument_parser(epilog=None):
    """The command line of training programs.

    Args:
        epilog: text after the help; examples by default.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="the config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in the output folder, if there is one; see "
        "`DefaultTrainer.resume_or_load()`",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs on *each machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="index of this machine, another on each"
    )
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{_port_of_user()}",
        help="where the processes meet; see https://pytorch.org/docs/stable/distributed.html",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        default=None,
        help="changes of the config, as pairs of PATH.KEY and VALUE, at the end of the command",
    )
    return parser


def default_setup(cfg, args):
    """Start of a job: logging, random seeds, and a copy of the config in the output folder.

    Args:
        cfg: the full config.
        args: the command line; logged, and `eval_only` decides on cuDNN's benchmark mode.
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
    # Different on every rank, or all ranks would draw the same augmentations.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    precision = getattr(cfg, "FLOAT32_PRECISION", "")
    if precision:
        logger.info(f"Set float32 matmul precision to {precision}")
        torch.set_float32_matmul_precision(precision)


def _tensorboard_available() -> bool:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        return False
    return True


def default_writers(output_dir: str, max_iter: int | None = None):
    """The usual event writers: log lines, `metrics.json`, and TensorBoard where it is installed.

    Args:
        output_dir: folder for the files.
        max_iter: iterations of the whole training.
    """
    PathManager.mkdirs(output_dir)
    writers = [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
    ]
    if _tensorboard_available():
        writers.append(TensorboardXWriter(output_dir))
    else:
        logging.getLogger("detectron2.engine.defaults").info(
            "No TensorBoard event files: tensorboard is not installed"
        )
    return writers
