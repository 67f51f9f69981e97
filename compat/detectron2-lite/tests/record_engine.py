# SPDX-License-Identifier: Apache-2.0
"""Records solver, checkpoints, engine, evaluation and utils of the real Detectron2.

It has two steps, because checkpoints are loaded in both directions:

    PYTHONPATH=<src of detectron2-lite> python record_engine.py --checkpoint
    PYTHONPATH=<checkout of Detectron2> python record_engine.py

The first writes data/engine_lite_checkpoint.json, a checkpoint saved by lite. The second writes
the results of the functions in ``CASES``, and a checkpoint of the real one, to data/engine.json,
for ``test_parity.py``. Tensors are stored as nested lists.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
)
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, SimpleTrainer, default_argument_parser, hooks
from detectron2.evaluation import print_csv_format
from detectron2.solver import (
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter
from detectron2.utils.logger import create_small_table
from detectron2.utils.testing import random_boxes
from engine_inputs import from_json, log_lines, to_json, train
from torch import nn

COMMIT = "02b5c4e"
DATA = Path(__file__).resolve().parent / "data"
LITE_CHECKPOINT = DATA / "engine_lite_checkpoint.json"


def metric_lines():
    """Returns the lines of CommonMetricPrinter with and without times, rates and max_iter."""
    values = {
        "total_loss": 1.5,
        "loss_b": 0.25,
        "loss_a": 12345.678,
        "time": 0.5,
        "data_time": 0.123456,
        "lr": 0.00123456789,
        "[metric]acc": 1e-7,
        "bbox/AP": 33.3,
    }
    lines = []
    for names in (list(values), ["total_loss"], ["lr", "[metric]acc"], ["time", "data_time"]):
        for max_iter in (40, None):
            with log_lines() as got, EventStorage(3) as storage:
                printer = CommonMetricPrinter(max_iter, window_size=4)
                for step in range(8):
                    for name in names:
                        storage.put_scalar(
                            name, values[name] * (step + 1), smoothing_hint=name != "lr"
                        )
                    if step in (1, 7):
                        printer.write()
                    storage.step()
            lines += got
    return lines


def json_lines():
    """Returns the lines of JSONWriter for scalars with different periods and hints."""
    with tempfile.TemporaryDirectory() as folder, EventStorage() as storage:
        path = Path(folder) / "metrics.json"
        writer = JSONWriter(str(path), window_size=6)
        for step in range(12):
            storage.put_scalar("smooth", step**2)
            storage.put_scalar("raw", step / 3, smoothing_hint=False)
            if step % 5 == 0:
                with storage.name_scope("scope"):
                    storage.put_scalars(rare=step, cur_iter=step + 1)
            if step % 4 == 3:
                writer.write()
            storage.step()
        writer.close()
        return path.read_text().splitlines()


def schedules():
    """Returns the learning rates of each scheduler of the config."""
    rates = {}
    for name in ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"):
        for method, rescale in (("linear", False), ("constant", True)):
            cfg = get_cfg()
            cfg.SOLVER.LR_SCHEDULER_NAME = name
            cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 24, (9, 15, 99)
            cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR_END = 0.5, 0.01
            cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_METHOD = 5, method
            cfg.SOLVER.WARMUP_FACTOR, cfg.SOLVER.RESCALE_INTERVAL = 0.1, rescale
            optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
            scheduler = build_lr_scheduler(cfg, optimizer)
            rates[f"{name} {method}"] = values = []
            for _ in range(23):
                values.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
    return rates


class TinyNet(nn.Module):
    """Linear and normalization layers, with a shared and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.twin = self.first
        self.embedding = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def _group_names(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "params": [names[id(parameter)] for parameter in group["params"]],
        }
        for group in groups
    ]


def optimizer_groups():
    """Returns parameter groups for several settings, and those of the config."""
    model = TinyNet()
    options = [
        {},
        {"base_lr": 0.1, "weight_decay": 0.2, "weight_decay_norm": 0.0},
        {"base_lr": 0.1, "bias_lr_factor": 2.0, "weight_decay_bias": 0.3},
        {"overrides": {"embedding": {"lr": 0.01}, "bias": {"weight_decay": 0.5}}},
        {"base_lr": 0.1, "lr_factor_func": lambda name: 0.5 if name.startswith("inner") else 1.0},
    ]
    result = [_group_names(model, get_default_optimizer_params(model, **o)) for o in options]
    cfg = get_cfg()
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    optimizer = build_optimizer(cfg, model)
    result.append([type(optimizer).__name__, _group_names(model, optimizer.param_groups)])
    return result


def clipped_steps():
    """Returns the weights after one step with each type of gradient clipping."""
    result = {}
    for kind in ("value", "norm"):
        cfg = get_cfg()
        cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM = 1.0, 0.0
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
        model = nn.Linear(2, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = build_optimizer(cfg, model)
        model(torch.tensor([[3.0, -0.25]])).sum().backward()
        optimizer.step()
        result[kind] = [type(optimizer).__name__, model.weight.tolist(), model.bias.tolist()]
    return result


C2_NAMES = (
    "pred_w pred_b conv1_w conv1_b res_conv1_bn_s res_conv1_bn_b res_conv1_bn_rm res_conv1_bn_riv "
    "res2_0_branch1_w res2_0_branch1_bn_s res3_1_branch2a_w res2_0_branch2b_bn_b "
    "res5_2_branch2c_bn_riv fc1000_w x_bn_gamma x_bn_beta x_bn_running_mean x_bn_running_var "
    "z_gn_s y_gn_b lr model_iter bbox_pred_w bbox_pred_b cls_score_w cls_score_b fc6_w fc7_b "
    "head_conv1_w head_conv4_gn_b fpn_inner_res5_2_sum_w fpn_inner_res2_2_sum_lateral_w "
    "fpn_inner_res4_5_sum_lateral_gn_b fpn_res2_2_sum_w fpn_res3_3_sum_b fpn_res4_22_sum_gn_s "
    "conv_rpn_fpn2_w rpn_bbox_pred_fpn2_w rpn_cls_logits_fpn2_b"
).split()


def caffe2_names():
    """Returns names and values of Caffe2 weights after their conversion."""
    shapes = {
        "bbox_pred_w": (8, 2),
        "bbox_pred_b": (8,),
        "cls_score_w": (3, 2),
        "cls_score_b": (3,),
    }
    weights = {}
    for name in C2_NAMES:
        shape = shapes.get(name, (1,))
        weights[name] = torch.arange(float(math.prod(shape))).reshape(shape)
    basic = convert_basic_c2_names(C2_NAMES)
    single = convert_c2_detectron_names({"conv_rpn_w": torch.zeros(1)})[1]
    new, original = convert_c2_detectron_names(weights)
    return [
        basic,
        single,
        {k: v.tolist() for k, v in sorted(new.items())},
        sorted(original.items()),
    ]


def matched_names():
    """Returns the weight matched with each parameter."""
    model = {
        "backbone.stem.conv1.weight": 2,
        "backbone.res2.0.conv1.weight": 2,
        "backbone.res2.0.conv1.norm.weight": 3,
        "head.fc.weight": 4,
        "head.fc.bias": 4,
        "lonely": 1,
    }
    checkpoint = {
        "stem.conv1.weight": 2,
        "res2.0.conv1.weight": 2,
        "conv1.weight": 2,
        "res2.0.conv1.norm.weight": 3,
        "fc.weight": 5,
        "fc.bias": 4,
        "other": 1,
        "ely": 1,
    }
    model = {name: torch.zeros(size) for name, size in model.items()}
    checkpoint = {
        name: torch.full((size,), float(index))
        for index, (name, size) in enumerate(checkpoint.items())
    }
    with log_lines() as lines:
        result = align_and_update_state_dicts(model, checkpoint, c2_conversion=False)
    return [lines, {name: value.tolist() for name, value in sorted(result.items())}]


def small_things():
    """Returns printed results, tables, random boxes, seeds and command line defaults."""
    with log_lines() as lines:
        print_csv_format({"bbox": {"AP": 1.5, "AP50": 2.0, "AP-cat": 3.0}, "number": 4.0})
    seed_all_rng(7)
    boxes = random_boxes(3, 50).tolist()
    arguments = vars(default_argument_parser().parse_args(["--num-gpus", "2", "A.B", "1"]))
    cfg = get_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    scaled = DefaultTrainer.auto_scale_workers(cfg, 3)
    return {
        "csv": lines,
        "table": create_small_table({"a": 1.23456, "b": 2}),
        "boxes": boxes,
        "arguments": {k: v for k, v in arguments.items() if k != "dist_url"},
        "scaled": {k: scaled.SOLVER[k] for k in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS")},
    }


class _OneLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": (self.weight * x).sum()}


def best_checkpoints():
    """Returns the log and files of BestCheckpointer, also for missing and nan metrics."""
    result = []
    for mode, metrics in (("max", [0.3, 0.2, math.nan, 0.5]), ("min", [1.0, None, 0.5, 0.7])):
        values = iter(metrics)

        def evaluate(values=values):
            value = next(values)
            return {} if value is None else {"score": value}

        with tempfile.TemporaryDirectory() as folder, log_lines() as lines:
            model = _OneLoss()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            trainer = SimpleTrainer(model, iter(lambda: torch.ones(1), None), optimizer)
            checkpointer = DetectionCheckpointer(model, folder)
            trainer.register_hooks(
                [
                    hooks.EvalHook(2, evaluate),
                    hooks.BestCheckpointer(2, checkpointer, "score", mode),
                ]
            )
            trainer.train(0, 8)
            saved = torch.load(Path(folder) / "model_best.pth")["iteration"]
            result.append([lines, sorted(p.name for p in Path(folder).iterdir()), saved])
    return result


def _weights(trainer):
    return {name: value.tolist() for name, value in trainer.model.state_dict().items()}


def training():
    """Returns files, metrics without times, log lines, checkpoint and weights of a training."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        trainer, lines = train(folder, 14, resume=False)
        checkpoint = torch.load(folder / "model_final.pth")
        metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        times = ("time", "data_time", "rank_data_time", "eta_seconds")
        return {
            "files": sorted(path.name for path in folder.iterdir()),
            "last_checkpoint": (folder / "last_checkpoint").read_text(),
            "metrics": [{k: None if k in times else v for k, v in m.items()} for m in metrics],
            # without the text of newer versions of torch, and whether tensorboard is installed
            "lines": [
                x.replace("affine=True, bias=True", "affine=True")
                for x in lines
                if "iter: " not in x and "tensorboard" not in x.lower()
            ],
            "checkpoint": to_json(checkpoint),
            "weights": _weights(trainer),
        }


def resume_from(checkpoint):
    """Resumes a training from a checkpoint; returns its first iteration and final weights."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(from_json(checkpoint), Path(folder) / "model_final.pth")
        (Path(folder) / "last_checkpoint").write_text("model_final.pth")
        trainer, _ = train(folder, 20, resume=True)
        return [trainer.start_iter, _weights(trainer)]


CASES = [
    metric_lines,
    json_lines,
    schedules,
    optimizer_groups,
    clipped_steps,
    caffe2_names,
    matched_names,
    small_things,
    best_checkpoints,
    training,
]


def main():
    """Writes the recordings."""
    import detectron2

    is_lite = hasattr(detectron2, "__lite__")
    if "--checkpoint" in sys.argv:
        assert is_lite, "The checkpoint of lite is written by lite"
        LITE_CHECKPOINT.write_text(json.dumps(training()["checkpoint"]) + "\n")
        return
    assert not is_lite, "Record with the real Detectron2 first on PYTHONPATH"
    recorded = {case.__name__: case() for case in CASES}
    recorded["resumed from real"] = resume_from(recorded["training"]["checkpoint"])
    recorded["resumed from lite"] = resume_from(json.loads(LITE_CHECKPOINT.read_text()))
    path = DATA / "engine.json"
    content = {"detectron2_commit": COMMIT, "torch": torch.__version__, "cases": recorded}
    path.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
