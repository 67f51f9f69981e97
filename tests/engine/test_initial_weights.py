# SPDX-License-Identifier: Apache-2.0
"""The warning of a training that starts with random weights that are frozen."""

import logging

import pytest
from detectron2.modeling import build_backbone
from torch import nn

from person_search.engine import PersonSearchTrainer
from person_search.engine.initial_weights import warn_of_frozen_random_weights

DEFAULTS = (
    "MODEL.WEIGHTS is empty, so the backbone starts from random weights, but "
    "MODEL.BACKBONE.FREEZE_AT 2 freezes {} of its parameters and 20 layers of MODEL.RESNETS.NORM "
    "FrozenBN normalize nothing. Set MODEL.WEIGHTS to pre-trained weights, e.g. "
    "detectron2://ImageNetPretrained/torchvision/R-50.pkl, or train from scratch with "
    "MODEL.BACKBONE.FREEZE_AT 0 and MODEL.RESNETS.NORM BN (SyncBN on several GPUs)."
)


@pytest.fixture
def cfg(make_cfg):
    """With a ResNet-18 as Detectron2's defaults have it, not frozen."""
    cfg = make_cfg().clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    return cfg


class WithBackbone(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def warnings(cfg, caplog, model=None) -> list[str]:
    caplog.clear()
    warn_of_frozen_random_weights(cfg, model or WithBackbone(build_backbone(cfg)))
    return [record.getMessage() for record in caplog.records]


def test_detectron2s_defaults_on_random_weights(cfg, caplog) -> None:
    # conv1 3 -> 64 (7 x 7), and two blocks of two convolutions 64 -> 64 (3 x 3)
    frozen = 3 * 64 * 49 + 4 * 64 * 64 * 9
    assert warnings(cfg, caplog) == [DEFAULTS.format(f"{frozen:,}")]


@pytest.mark.parametrize(
    ("freeze_at", "norm", "said", "not_said"),
    [
        (0, "BN", None, None),
        (2, "BN", "FREEZE_AT 2 freezes", "MODEL.RESNETS.NORM"),
        (0, "FrozenBN", "20 layers of MODEL.RESNETS.NORM FrozenBN", "MODEL.BACKBONE.FREEZE_AT"),
    ],
)
def test_only_what_is_wrong_is_named(cfg, caplog, freeze_at, norm, said, not_said) -> None:
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM = freeze_at, norm
    found = warnings(cfg, caplog)
    if said is None:
        assert found == []
    else:
        assert len(found) == 1 and said in found[0] and not_said not in found[0]


def test_nothing_is_said_of_weights_that_are_there(cfg, caplog) -> None:
    cfg.MODEL.WEIGHTS = "some.pth"
    assert warnings(cfg, caplog) == []
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    model = WithBackbone(build_backbone(cfg))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.3)  # from the model's own load_initial_weights()
    assert warnings(cfg, caplog, model) == []
    assert warnings(cfg, caplog, nn.Linear(1, 1)) == []  # no backbone


def test_the_trainer_says_it_where_a_training_starts(cfg, caplog) -> None:
    cfg.SOLVER.MAX_ITER = 1
    trainer = PersonSearchTrainer(cfg)
    trainer.model.backbone = build_backbone(cfg)
    with caplog.at_level(logging.WARNING):
        trainer.resume_or_load(resume=False)
    assert "MODEL.BACKBONE.FREEZE_AT 2 freezes" in caplog.text
    trainer.checkpointer.save("model_0000000", iteration=0)
    caplog.clear()
    trainer.resume_or_load(resume=True)
    assert "FREEZE_AT" not in caplog.text
