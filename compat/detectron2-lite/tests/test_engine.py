# SPDX-License-Identifier: Apache-2.0
"""Training loop, hooks and DefaultTrainer: order of calls, state, errors."""

import math
import types

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import (
    AMPTrainer,
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn


class OneWeight(nn.Module):
    """loss = weight * x; the gradient is the input."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.factor = factor

    def forward(self, x):
        return {"loss_a": (self.weight * x).sum() * self.factor, "loss_b": x.sum() * 0 + 2}


def make_trainer(model=None, **options):
    model = model or OneWeight()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    return SimpleTrainer(model, iter(lambda: torch.ones(1), None), optimizer, **options)


class Recorder(HookBase):
    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name in ("before_train", "after_train", "before_step", "after_backward", "after_step"):
            return lambda: self.calls.append((name, self.trainer.iter, self.trainer.storage.iter))
        return super().__getattribute__(name)


def test_hooks_are_called_in_order():
    trainer, recorder = make_trainer(), Recorder()
    trainer.register_hooks([None, recorder])
    trainer.train(3, 5)
    step = ["before_step", "after_backward", "after_step"]
    assert [name for name, _, _ in recorder.calls] == [
        "before_train",
        *step,
        *step,
        "after_train",
    ]
    assert [i for name, i, _ in recorder.calls if name == "before_step"] == [3, 4]
    assert recorder.calls[-1] == ("after_train", 5, 5)


@pytest.mark.parametrize("zero_grad_before_forward", [False, True])
def test_step_is_gradient_descent(zero_grad_before_forward):
    trainer = make_trainer(zero_grad_before_forward=zero_grad_before_forward)
    trainer.train(0, 3)
    assert trainer.model.weight.item() == -1.5
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert losses == [2.0, 1.5, 1.0]


def test_nan_loss_stops_the_training_and_closes_hooks():
    trainer, recorder = make_trainer(OneWeight(math.nan)), Recorder()
    trainer.register_hooks([recorder])
    with pytest.raises(FloatingPointError, match="iteration=0"):
        trainer.train(0, 2)
    assert recorder.calls[-1] == ("after_train", 0, 0)


def test_metrics_are_gathered_every_few_iterations():
    trainer = make_trainer(gather_metric_period=4)
    trainer.train(0, 10)
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [3, 7]


def test_state_names_hooks_and_ignores_unknown_ones(caplog):
    trainer = make_trainer()
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)
    trainer.register_hooks([hooks.LRScheduler(scheduler=scheduler), hooks.IterationTimer()])
    trainer.train(0, 2)
    state = trainer.state_dict()
    assert state["iteration"] == 2 and list(state["hooks"]) == ["LRScheduler"]

    other = make_trainer()
    other.load_state_dict(state)
    assert other.iter == 2
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    assert "Cannot find the hook 'LRScheduler'" in caplog.text


def test_evaluations_come_periodically_and_after_training():
    seen = []
    trainer = make_trainer()
    trainer.register_hooks([hooks.EvalHook(2, lambda: seen.append(trainer.iter))])
    trainer.train(0, 6)
    assert seen == [1, 3, 6]
    for bad in ({"a": {"b": "text"}}, {"a": [1]}):
        trainer = make_trainer()
        trainer.register_hooks([hooks.EvalHook(0, lambda bad=bad: bad)])
        with pytest.raises(ValueError, match="nested dict of float"):
            trainer.train(0, 1)


def test_callbacks_get_the_trainer():
    seen = []
    trainer = make_trainer()
    trainer.register_hooks([hooks.CallbackHook(after_step=lambda t: seen.append(t.iter))])
    trainer.train(0, 2)
    assert seen == [0, 1]


def test_learning_rate_of_the_largest_group_is_reported():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(4)]

    def best(sizes, rates):
        parameters = iter(weights)
        groups = [
            {"params": [next(parameters) for _ in range(size)], "lr": rate}
            for size, rate in zip(sizes, rates, strict=True)
        ]
        return hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(groups, 0.1))

    assert best([1, 2, 1], [1.0, 2.0, 3.0]) == 1
    assert best([1, 1, 1], [1.0, 2.0, 2.0]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_mixed_precision_asks_for_a_gpu():
    model = OneWeight()
    trainer = AMPTrainer(model, iter([]), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(AssertionError, match="needs a CUDA device"):
        trainer.run_step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixed_precision_trains_and_saves_its_scale():
    model = OneWeight().cuda()
    data = iter(lambda: torch.ones(1, device="cuda"), None)
    trainer = AMPTrainer(model, data, torch.optim.SGD(model.parameters(), 0.5))
    trainer.train(0, 3)
    assert trainer.model.weight.item() == pytest.approx(-1.5)
    assert trainer.state_dict()["grad_scaler"]["scale"] > 0


def test_set_up_leaves_config_and_seeds(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path), 5
    default_setup(cfg, types.SimpleNamespace(config_file="", eval_only=False))
    assert torch.initial_seed() == 5
    saved = get_cfg()
    saved.merge_from_file(str(tmp_path / "config.yaml"))
    assert yaml.safe_load(saved.dump()) == yaml.safe_load(cfg.dump())


def test_one_process_runs_in_place():
    seen = []
    launch(seen.append, 0, args=(1,))
    launch(seen.append, 1, args=(2,))
    assert seen == [1, 2]


def test_arguments_keep_config_changes():
    arguments = default_argument_parser().parse_args(["--resume", "SOLVER.BASE_LR", "0.1"])
    assert arguments.resume and arguments.opts == ["SOLVER.BASE_LR", "0.1"]
    assert arguments.dist_url.startswith("tcp://127.0.0.1:")


def test_evaluation_without_evaluators_is_skipped(caplog):
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("a", "b")

    class Trainer(DefaultTrainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            return []

    assert Trainer.test(cfg, OneWeight()) == {"a": {}, "b": {}}
    assert "a is not evaluated" in caplog.text
    with pytest.raises(AssertionError, match="1 evaluators for 2 data sets"):
        Trainer.test(cfg, OneWeight(), [None])


def test_predictor_resizes_and_reports_in_the_original_frame():
    seen = {}

    @META_ARCH_REGISTRY.register()
    class EngineTestEcho(nn.Module):
        def __init__(self, cfg):
            super().__init__()

        def forward(self, batch):
            seen.update(batch[0], training=self.training, grad=torch.is_grad_enabled())
            return [{"count": len(batch)}]

    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "EngineTestEcho", "cpu", ""
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT = 20, 100, "RGB"
    image = np.zeros((10, 30, 3), np.uint8)
    image[..., 0] = 200  # blue, in OpenCV's order
    assert DefaultPredictor(cfg)(image) == {"count": 1}
    assert (seen["height"], seen["width"]) == (10, 30)
    assert seen["image"].shape == (3, 20, 60) and seen["image"].dtype == torch.float32
    assert seen["image"][:, 5, 5].tolist() == [0, 0, 200]
    assert not seen["training"] and not seen["grad"]
