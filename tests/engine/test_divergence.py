# SPDX-License-Identifier: Apache-2.0
"""A training that diverges ends with one message, a report and an intact checkpoint."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from tiny_runs import assert_same_state, poison_loss, train
from torch import nn

from person_search.engine import PersonSearchTrainer, TrainingDivergedError
from person_search.engine.train_step import MAX_SKIPPED_STEPS, AMPStepTrainer


def diverge(cfg, prepare) -> str:
    """Trains until it ends by itself; returns the message."""
    seed_all_rng(1)
    trainer = PersonSearchTrainer(cfg)
    prepare(trainer)
    with pytest.raises(TrainingDivergedError) as error:
        trainer.train()
    return str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_that_is_not_finite(make_cfg, value: float, parts: int) -> None:
    accumulate = ("SOLVER.ACCUMULATION_STEPS", parts)
    whole, _ = train(make_cfg("whole", *accumulate))
    cfg = make_cfg("out", *accumulate)
    message = diverge(cfg, lambda trainer: poison_loss(trainer, 5, value))
    assert message.startswith("The loss is not finite at iteration 5 (")
    assert f"loss_poisoned {value}" in message and "learning rate 0.003" in message
    assert "model_0000003.pth, is intact; --resume continues from it" in message
    folder = Path(cfg.OUTPUT_DIR)
    record = json.loads((folder / "diverged_0000005.json").read_text())
    assert record["iteration"] == 5 and record["learning_rate"] == pytest.approx(0.003)
    (process,) = record["processes"]
    assert len(process["parts"]) == parts
    images = [image for part in process["parts"] for image in part["images"]]
    assert len(images) == 2
    for image in images:
        assert Path(image["file_name"]).is_file() and isinstance(image["image_id"], int)
    assert process["parts"][-1]["losses"]["loss_poisoned"] == str(value)

    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"
    resumed, losses = train(cfg, resume=True)
    assert sorted(losses) == [4, 5, 6, 7]
    assert_same_state(whole, resumed)


def test_from_the_command_line(run, capsys, tmp_path) -> None:
    """A learning rate far too high: the first step loses the weights, the next the loss."""
    with pytest.raises(SystemExit) as end:
        run("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0")
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert "error: The loss is not finite at iteration 1 (" in shown.err
    assert "There is no checkpoint yet." in shown.err and "SOLVER.BASE_LR" in shown.err
    assert "Traceback" not in shown.out + shown.err
    assert (tmp_path / "out" / "diverged_0000001.json").is_file()


def test_weights_that_are_not_finite_are_not_saved(make_cfg) -> None:
    """The loss is still finite in iteration 7, after which a checkpoint is due."""

    def break_gradient(trainer) -> None:
        weight = trainer.model.embed.weight
        spoil = lambda grad: grad * (math.nan if trainer.iter == 7 else 1.0)  # noqa: E731
        weight.register_hook(spoil)

    cfg = make_cfg("out", "SOLVER.MAX_ITER", 12)
    message = diverge(cfg, break_gradient)
    assert message.startswith("The weights are not finite and are not saved, at iteration 7")
    folder = Path(cfg.OUTPUT_DIR)
    (process,) = json.loads((folder / "diverged_0000007.json").read_text())["processes"]
    assert process["num_non_finite_weights"] == 1
    assert process["non_finite_weights"] == ["embed.weight"]
    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"
    assert not (folder / "model_0000007.pth").exists()


def test_a_failed_report_does_not_hide_the_error(make_cfg) -> None:
    def spoil(trainer) -> None:
        poison_loss(trainer, 1, math.nan)
        (Path(trainer.cfg.OUTPUT_DIR) / "diverged_0000001.json.incomplete").mkdir()

    message = diverge(make_cfg(), spoil)
    assert "The loss is not finite at iteration 1" in message and "Could not write" in message


class Steep(nn.Module):
    """Its loss is small; its gradient is infinite while ``broken``."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0]))
        self.broken = False

    def forward(self, batch):
        steep = self.weight.sqrt() if self.broken else 0.0
        return {"loss": (self.weight * 0.5 + steep).sum()}


def amp_trainer() -> AMPStepTrainer:
    model = Steep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = [[{"file_name": "a.jpg", "image_id": 1}]] * 200
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    return AMPStepTrainer(model, data, optimizer, grad_scaler=scaler, precision=torch.bfloat16)


def run_steps(trainer: AMPStepTrainer, first: int, count: int) -> None:
    with EventStorage():
        for trainer.iter in range(first, first + count):
            trainer.run_step()


def test_skipped_steps_of_mixed_precision() -> None:
    trainer = amp_trainer()
    for start in (0, 100):  # a row that ends is not a reason to stop
        trainer.model.broken = True
        run_steps(trainer, start, MAX_SKIPPED_STEPS // 2)
        trainer.model.broken = False
        run_steps(trainer, start + MAX_SKIPPED_STEPS // 2, 2)
        assert trainer.num_skipped == 0
        trainer.grad_scaler.update(2.0**40)
    trainer.model.broken = True
    run_steps(trainer, 150, MAX_SKIPPED_STEPS)
    with pytest.raises(TrainingDivergedError) as error:
        run_steps(trainer, 150 + MAX_SKIPPED_STEPS, 1)
    assert str(error.value).startswith(
        f"Gradients overflow in mixed precision: {MAX_SKIPPED_STEPS} steps in a row changed no "
        "weight, the loss scale has fallen to 0.00098 at iteration 200 (loss 0,"
    )
    assert "SOLVER.AMP.ENABLED False" in str(error.value)


def test_a_loss_scale_near_zero() -> None:
    trainer = amp_trainer()
    run_steps(trainer, 0, 1)  # a scaler has no scale before
    trainer.grad_scaler.update(2.0**-13)
    trainer.model.broken = True
    run_steps(trainer, 0, 2)
    with pytest.raises(TrainingDivergedError, match="fallen to 3.1e-05"):
        run_steps(trainer, 2, 1)
