# SPDX-License-Identifier: Apache-2.0
"""Optimizers from the config."""

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from person_search.engine import build_optimizer
from person_search.engine.train_step import AMPStepTrainer, StepTrainer


def model_with_gradients(*gradients: float) -> nn.ParameterList:
    params = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in gradients])
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = torch.tensor(gradient)
    return params


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_settings_apply_and_frozen_parameters_are_omitted(make_cfg, name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    cfg = make_cfg(
        "out", "SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", 0.5, "SOLVER.WEIGHT_DECAY", 0.25,
        "SOLVER.WEIGHT_DECAY_NORM", 0.125,
    )  # fmt: skip
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer).__name__ == name
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert set(decay) == {*model[1].parameters(), *model[2].parameters()}
    assert decay[model[1].weight] == 0.125 and decay[model[2].weight] == 0.25
    assert {g["lr"] for g in optimizer.param_groups} == {0.5}


def clipped(make_cfg, kind: str) -> list[float]:
    model = model_with_gradients(3.0, 4.0)
    cfg = make_cfg(
        "out", "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 0.0,
        "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 2.5,
    )  # fmt: skip
    build_optimizer(cfg, model).step()
    return [-float(p) for p in model]


def test_full_model_clipping_keeps_the_direction(make_cfg) -> None:
    assert clipped(make_cfg, "full_model") == pytest.approx([1.5, 2.0])  # norm 5 -> 2.5


def test_detectron2s_clipping_is_per_parameter(make_cfg) -> None:
    assert clipped(make_cfg, "norm") == pytest.approx([2.5, 2.5])
    assert clipped(make_cfg, "value") == pytest.approx([2.5, 2.5])


def test_small_gradients_are_not_clipped() -> None:
    from person_search.engine.optimizer import add_full_model_clipping

    model = model_with_gradients(0.3, 0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    add_full_model_clipping(optimizer, 1.0)
    optimizer.step()
    assert [-float(p) for p in model] == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (("SOLVER.OPTIMIZER", "Adagrad"), "SOLVER.OPTIMIZER is 'Adagrad'; known"),
        (
            ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"),
            "CLIP_TYPE is 'all'; known",
        ),
    ],
)
def test_unknown_names(make_cfg, opts, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build_optimizer(make_cfg("out", *opts), nn.Linear(1, 1))


def test_nothing_to_train(make_cfg) -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(make_cfg(), nn.Linear(1, 1).requires_grad_(False))


def adamw(make_cfg, model: nn.Module, *opts: object) -> torch.optim.Optimizer:
    return build_optimizer(make_cfg("out", "SOLVER.OPTIMIZER", "AdamW", *opts), model)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[torch.Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("of_checkpoint", [True, None])
def test_fused_adamw_resumes(make_cfg, of_checkpoint) -> None:
    """To the same weights, and from a checkpoint whose optimizer is not fused."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    optimizer = adamw(make_cfg, model)
    assert {group["fused"] for group in optimizer.param_groups} == {True}
    train(model, optimizer)
    checkpoint, resumed = copy.deepcopy((optimizer.state_dict(), model))
    for group in checkpoint["param_groups"]:
        group["fused"] = of_checkpoint
    other = adamw(make_cfg, resumed)
    other.load_state_dict(checkpoint)
    assert {group["fused"] for group in other.param_groups} == {True}
    for mine, wanted in zip(train(resumed, other), train(model, optimizer), strict=True):
        assert torch.equal(mine, wanted)


def test_device_without_a_fused_adamw(make_cfg) -> None:
    optimizer = adamw(make_cfg, nn.Linear(3, 4).to("meta"))
    assert {group["fused"] for group in optimizer.param_groups} == {None}


@pytest.mark.parametrize("kind", ["value", "norm", "full_model"])
def test_mixed_precision_clips_unscaled_gradients(make_cfg, kind: str) -> None:
    """A fused optimizer could unscale them itself, after they were clipped."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    opts = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind,
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01)  # fmt: skip
    data = [[torch.rand(1, 3)]] * 3
    results = []
    for scaled in (False, True):
        copied = copy.deepcopy(model)
        net = Squares(copied)
        optimizer = adamw(make_cfg, net, *opts)
        if scaled:
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            trainer = AMPStepTrainer(
                net, data, optimizer, grad_scaler=scaler, precision=torch.bfloat16
            )
        else:
            trainer = StepTrainer(net, data, optimizer, autocast=torch.bfloat16)
        with EventStorage():
            for trainer.iter in range(3):
                trainer.run_step()
        results.append([p.detach() for p in net.parameters()])
    torch.testing.assert_close(*results)


class Squares(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": self.linear(torch.cat(batch)).square().sum()}
