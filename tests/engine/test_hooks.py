# SPDX-License-Identifier: Apache-2.0
"""Checkpoint hooks: failed writes, signals, the best model."""

import ast
import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import CallbackHook, EvalHook
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from tiny_runs import assert_same_state, compare_interrupted, compare_interrupted_process, train
from torch import nn
from two_processes import run_in_two_processes

from person_search.engine import (
    AtomicCheckpointer,
    BestModelCheckpointer,
    CheckpointWriteError,
    PersonSearchTrainer,
)


def fail_on(monkeypatch, *names: str) -> None:
    """Makes the last step of writing these files fail."""
    replace = os.replace

    def replace_or_fail(source, target) -> None:
        if os.path.basename(target) in names:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_fail)


# ---- failed writes ---------------------------------------------------------------------------
def test_training_survives_a_failed_checkpoint(make_cfg, monkeypatch, caplog) -> None:
    fail_on(monkeypatch, "model_0000003.pth", "results.json")
    cfg = make_cfg()
    _, losses = train(cfg)
    assert len(losses) == 8
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 2 and "model_0000003.pth" in errors[0] and "results.json" in errors[1]
    assert errors[0].endswith("The training continues.")
    assert not (Path(cfg.OUTPUT_DIR) / "model_0000003.pth").exists()
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_final.pth"


def test_a_failed_last_checkpoint_ends_the_program(make_cfg, monkeypatch) -> None:
    fail_on(monkeypatch, "model_final.pth")
    cfg = make_cfg()
    with pytest.raises(CheckpointWriteError, match="model_final.pth"):
        train(cfg)
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000007.pth"


# ---- signals ---------------------------------------------------------------------------------
def train_with_signals(cfg, *numbers: int) -> PersonSearchTrainer:
    """Trains; the process gets the signals at the end of iteration 2."""

    def send(trainer) -> None:
        if trainer.iter == 2:
            for number in numbers:
                os.kill(os.getpid(), number)

    trainer = PersonSearchTrainer(cfg)
    trainer.register_hooks([CallbackHook(after_step=send)])
    trainer.train()
    return trainer


@pytest.fixture
def heard_signals():
    """Signals as in a terminal, also where the tests run in the background or under nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hangup)


def test_an_ignored_signal_stays_ignored(make_cfg, heard_signals) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cfg = make_cfg("out")
    train_with_signals(cfg, signal.SIGINT)
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_final.pth"
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_a_checkpoint_to_resume_from(
    make_cfg, heard_signals, number: int
) -> None:
    whole, _ = train(make_cfg("whole"))
    cfg = make_cfg("out", "SOLVER.CHECKPOINT_PERIOD", 100)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    seed_all_rng(1)
    with pytest.raises(SystemExit) as end:
        train_with_signals(cfg, number)
    assert end.value.code == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000003.pth"
    resumed, losses = train(cfg, resume=True)
    assert sorted(losses) == [4, 5, 6, 7]
    assert_same_state(whole, resumed)


def test_a_second_signal_ends_at_once(make_cfg, heard_signals) -> None:
    cfg = make_cfg("out", "SOLVER.CHECKPOINT_PERIOD", 100)
    with pytest.raises(KeyboardInterrupt):
        train_with_signals(cfg, signal.SIGINT, signal.SIGINT)
    assert not list(Path(cfg.OUTPUT_DIR).glob("*.pth*"))


def test_signal_handling_can_be_disabled(make_cfg, heard_signals) -> None:
    cfg = make_cfg("out", "SOLVER.CHECKPOINT_ON_SIGNAL", False)
    with pytest.raises(KeyboardInterrupt):
        train_with_signals(cfg, signal.SIGINT)


# ---- best model ------------------------------------------------------------------------------
class Counter(TrainerBase):
    """Its model's weight is the number of the iteration."""

    def __init__(self, folder: Path, values: list[float]):
        super().__init__()
        self.model = nn.Linear(1, 1)
        checkpointer = AtomicCheckpointer(self.model, str(folder), tag_last=False)
        self.values = iter(values)
        self.best = BestModelCheckpointer(2, checkpointer, "search/mAP")
        self.register_hooks(
            [EvalHook(2, lambda: {"search": {"mAP": next(self.values)}}), self.best]
        )

    def run_step(self) -> None:
        nn.init.constant_(self.model.weight, self.iter)


def best_weight(folder: Path) -> tuple[float, dict]:
    content = torch.load(folder / "model_best.pth", weights_only=True)
    record = json.loads((folder / "model_best.json").read_text())
    assert content["iteration"] == record["iteration"]
    assert record["metric"] == "search/mAP"
    return float(content["model"]["weight"]), record["value"]


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    Counter(tmp_path, [30.0, 50.0, 40.0, float("nan")]).train(0, 8)
    assert best_weight(tmp_path) == (3.0, 50.0)
    assert not (tmp_path / "last_checkpoint").exists()


def test_the_best_value_survives_an_interruption(tmp_path: Path) -> None:
    Counter(tmp_path, [30.0, 50.0, 10.0]).train(0, 5)
    Counter(tmp_path, [40.0]).train(4, 6)
    assert best_weight(tmp_path) == (3.0, 50.0)
    Counter(tmp_path, [60.0]).train(6, 8)
    assert best_weight(tmp_path) == (7.0, 60.0)
    Counter(tmp_path, [20.0]).train(0, 2)  # a new training in the same folder
    assert best_weight(tmp_path) == (1.0, 20.0)


def test_a_failed_write_of_the_best_model_is_repeated(tmp_path: Path, monkeypatch, caplog) -> None:
    with monkeypatch.context() as patch:
        fail_on(patch, "model_best.pth")
        Counter(tmp_path, [50.0]).train(0, 2)
    assert "The training continues" in caplog.text
    Counter(tmp_path, [40.0]).train(2, 4)
    assert best_weight(tmp_path) == (3.0, 40.0)


# ---- resuming -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("DATALOADER.NUM_WORKERS", 2),
        ("DATALOADER.ASPECT_RATIO_GROUPING", True),
        ("TEST.EVAL_PERIOD", 4),  # an evaluation at the very iteration of the checkpoint
        ("SOLVER.OPTIMIZER", "SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        ("SOLVER.ACCUMULATION_STEPS", 2),
    ],
    ids=["plain", "workers", "grouped", "evaluated", "sgd-cosine", "accumulated"],
)
def test_resumed_equals_uninterrupted(make_cfg, opts) -> None:
    losses = compare_interrupted(make_cfg("whole", *opts), make_cfg("broken", *opts))
    assert len(set(losses.values())) == 8  # the comparison is not one of constants


def test_two_processes(tmp_path: Path) -> None:
    run_in_two_processes(compare_interrupted_process, str(tmp_path))
    assert len(ast.literal_eval((tmp_path / "losses.txt").read_text())) == 8


def test_a_drawn_seed_is_resumed(make_cfg) -> None:
    cfg = make_cfg("out", "SEED", -1)
    first, _ = train(cfg, interrupt_after=5)
    second, _ = train(cfg, resume=True)
    assert second.data_loader.batch_sampler.seed == first.data_loader.batch_sampler.seed


def test_resume_without_a_checkpoint_starts_at_zero(make_cfg) -> None:
    trainer, losses = train(make_cfg(), resume=True)
    assert trainer.start_iter == 0 and len(losses) == 8


def test_a_finished_training_is_only_evaluated(make_cfg) -> None:
    cfg = make_cfg()
    whole, _ = train(cfg)
    again = type(whole)(cfg)
    again.resume_or_load(resume=True)
    again.train()
    assert again.start_iter == 8
    assert again._last_eval_results == whole._last_eval_results


def test_another_number_of_processes_or_batch_size_is_reported(make_cfg, caplog) -> None:
    train(make_cfg(), interrupt_after=5)
    path = Path(make_cfg().OUTPUT_DIR) / "model_0000003.pth"
    content = torch.load(path, weights_only=True)
    content["trainer"]["hooks"]["ResumableCheckpointer"]["rng"] *= 2
    torch.save(content, path)
    _, losses = train(make_cfg("out", "SOLVER.IMS_PER_BATCH", 4), resume=True)
    assert sorted(losses) == [4, 5, 6, 7]
    assert "another batch_size" in caplog.text
    assert "state of 2 processes, but this run has 1" in caplog.text


def test_plain_detectron2_reads_the_file(make_cfg) -> None:
    cfg = make_cfg()
    trainer, _ = train(cfg)
    model = build_model(trainer.cfg)
    rest = DetectionCheckpointer(model).load(str(Path(cfg.OUTPUT_DIR) / "model_final.pth"))
    assert rest["iteration"] == 7 and rest["trainer"]["iteration"] == 7
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ("removed", "start", "text"),
    [
        (["trainer"], 4, "holds no state of the trainer: optimizer and learning rate schedule"),
        (["trainer", "iteration"], 0, "holds no state of the trainer"),
        (["optimizer"], 4, "holds no optimizer state"),
        (["_trainer"], 4, "holds no optimizer state"),
    ],
)
def test_resuming_without_optimizer_state_is_reported(
    make_cfg, caplog, removed, start, text
) -> None:
    train(make_cfg(), interrupt_after=5)
    path = Path(make_cfg().OUTPUT_DIR) / "model_0000003.pth"
    content = torch.load(path, weights_only=True)
    for name in removed:
        places = (
            content,
            content.get("trainer", {}),
            content.get("trainer", {}).get("_trainer", {}),
        )
        next(place for place in places if name in place).pop(name)
    torch.save(content, path)
    trainer, losses = train(make_cfg(), resume=True)
    assert trainer.start_iter == start and len(losses) == 8 - start
    assert text in caplog.text
