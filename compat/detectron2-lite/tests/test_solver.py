# SPDX-License-Identifier: Apache-2.0
"""Optimizers and schedules: hand-computed rates, groups, clipping, errors."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import (
    LRMultiplier,
    WarmupParamScheduler,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn


def rates(scheduler, steps):
    optimizer, values = scheduler.optimizer, []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def sgd(rate=1.0):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], rate)


def test_linear_warmup_reaches_the_rate():
    warmup = WarmupParamScheduler(ConstantParamScheduler(1.0), 0.2, 4 / 8)
    scheduler = LRMultiplier(sgd(10.0), warmup, 8)
    assert rates(scheduler, 6) == pytest.approx([2.0, 4.0, 6.0, 8.0, 10.0, 10.0])
    assert scheduler.state_dict() == {"base_lrs": [10.0], "last_epoch": 6}


def test_schedule_goes_on_from_its_state():
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 10, (4, 7), 2
    whole = rates(build_lr_scheduler(cfg, sgd()), 10)
    first = build_lr_scheduler(cfg, sgd())
    rates(first, 5)
    second = build_lr_scheduler(cfg, sgd())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 5) == pytest.approx(whole[5:])


def test_bad_settings_are_named():
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = "Nope"
    with pytest.raises(ValueError, match="Unknown LR scheduler: Nope"):
        build_lr_scheduler(cfg, sgd())
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(sgd(), 0.1, 10)
    with pytest.raises(ValueError, match="Unknown warmup method"):
        WarmupParamScheduler(ConstantParamScheduler(1.0), 0.1, 0.1, "quadratic")
    with pytest.raises(ValueError, match="needs base_lr"):
        get_default_optimizer_params(nn.Linear(1, 1), bias_lr_factor=2.0)
    with pytest.raises(ValueError, match="'bias' has settings in overrides"):
        get_default_optimizer_params(
            nn.Linear(1, 1), weight_decay_bias=0.1, overrides={"bias": {"lr": 1.0}}
        )


def test_norm_layers_get_their_weight_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))
    groups = get_default_optimizer_params(model, weight_decay=0.1, weight_decay_norm=0.0)
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(2, 0.1), (4, 0.0)]


def test_clipping_only_where_enabled():
    cfg = get_cfg()
    assert type(build_optimizer(cfg, nn.Linear(1, 1))) is torch.optim.SGD
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    optimizer = sgd(1.0)
    assert maybe_add_gradient_clipping(cfg, optimizer) is optimizer
    (weight,) = optimizer.param_groups[0]["params"]
    weight.grad = torch.tensor([-5.0])
    optimizer.step()
    assert weight.item() == 1.0
