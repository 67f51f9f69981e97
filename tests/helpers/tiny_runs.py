# SPDX-License-Identifier: Apache-2.0
"""Short training runs of the tiny model, importable by child processes."""

import json
import math
import os
import signal
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import CallbackHook
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from programs import load_program
from tiny_model import register_tiny_dataset, tiny_cfg

from person_search.engine import (
    PersonSearchTrainer,
    TrainingDivergedError,
    evaluation_config,
    friendly_errors,
)


class Interrupted(Exception):
    """Ends a training early."""


def train(
    cfg: CfgNode, *, resume: bool = False, interrupt_after: int | None = None
) -> tuple[PersonSearchTrainer, dict[int, float]]:
    """Trains, and optionally stops after an iteration.

    Returns:
        The trainer, and the total loss of each iteration that was run.
    """

    def interrupt(trainer) -> None:
        if trainer.iter == interrupt_after:
            raise Interrupted

    # as default_setup does; a resumed run must not depend on what its process was seeded with
    seed_all_rng(99 if resume else 1 + comm.get_rank())
    trainer = PersonSearchTrainer(cfg)
    trainer.register_hooks([CallbackHook(after_step=interrupt)])
    trainer.resume_or_load(resume=resume)
    try:
        trainer.train()
    except Interrupted:
        pass
    if not comm.is_main_process():
        return trainer, {}
    history = trainer.storage.history("total_loss").values()
    return trainer, {int(iteration): value for value, iteration in history}


def assert_same_state(first: PersonSearchTrainer, second: PersonSearchTrainer) -> None:
    """Compares weights, optimizer and scheduler bit for bit."""
    for (name, a), b in zip(
        first.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    states = [x.optimizer.state_dict() for x in (first, second)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for key, state in states[0]["state"].items():
        for name, value in state.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(states[1]["state"][key][name])
            )
    assert first.scheduler.state_dict() == second.scheduler.state_dict()
    if first.average:
        states = [x.average.state_dict() for x in (first, second)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def poison_loss(trainer: PersonSearchTrainer, iteration: int, value: float) -> None:
    """Adds a loss that is ``value`` from an iteration on and zero before."""

    def add(model, inputs, losses):
        if not isinstance(losses, dict):
            return losses
        bad = value if trainer.iter >= iteration else 0.0
        return {**losses, "loss_poisoned": sum(losses.values()) * 0.0 + bad}

    trainer.model.register_forward_hook(add)


def compare_interrupted(whole: CfgNode, broken: CfgNode) -> dict[int, float]:
    """Checks that a training interrupted after iteration 5 and resumed equals the whole one."""
    expected_trainer, expected = train(whole)
    train(broken, interrupt_after=5)
    trainer, losses = train(broken, resume=True)
    assert trainer.start_iter == 4
    if comm.is_main_process():
        assert sorted(losses) == [4, 5, 6, 7]
        assert losses == {i: expected[i] for i in losses}
    assert_same_state(expected_trainer, trainer)
    return expected


def compare_interrupted_process(folder: str) -> None:
    """One of several processes: see :func:`compare_interrupted`."""
    name = "tiny_of_processes"
    register_tiny_dataset(name, Path(folder) / f"images{comm.get_rank()}")
    cfgs = []
    for run in ("whole", "broken"):
        cfg = tiny_cfg(Path(folder) / run, name)
        cfg.SOLVER.IMS_PER_BATCH = 4
        cfg.TEST.EVAL_PERIOD = 4
        cfg.SOLVER.EMA.ENABLED = True
        cfg.freeze()
        cfgs.append(cfg)
    losses = compare_interrupted(*cfgs)
    if comm.is_main_process():
        (Path(folder) / "losses.txt").write_text(repr(losses))
    stop_all_by_one_signal(cfgs[1])
    stop_all_by_one_loss(cfgs[1])


def stop_all_by_one_signal(cfg: CfgNode) -> None:
    """A signal to one process ends all of them after the same iteration."""

    def send(trainer) -> None:
        if trainer.iter == 1 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = PersonSearchTrainer(cfg)
    trainer.register_hooks([CallbackHook(after_step=send)])
    try:
        trainer.train()
    except SystemExit as e:
        assert e.code == 128 + signal.SIGTERM
    assert comm.all_gather(trainer.iter) == [2, 2]


def stop_all_by_one_loss(cfg: CfgNode) -> None:
    """A loss that is nan in one process ends all of them in the same iteration, with one report."""
    trainer = PersonSearchTrainer(cfg)
    if comm.get_rank() == 1:
        poison_loss(trainer, 2, math.nan)
    else:
        poison_loss(trainer, 99, math.nan)
    trainer.resume_or_load(resume=False)
    message = ""
    try:
        trainer.train()
    except TrainingDivergedError as e:
        message = str(e)
    assert message.startswith("The loss is not finite at iteration 2 (process 1, "), message
    assert len(set(comm.all_gather(message))) == 1
    weights = comm.all_gather([p.detach() for p in trainer.model.parameters()])
    averages = comm.all_gather(list(trainer.average.module.parameters()))
    for ours, theirs in zip(weights[0] + averages[0], weights[1] + averages[1], strict=True):
        assert ours.isfinite().all() and torch.equal(ours, theirs)
    with open(os.path.join(cfg.OUTPUT_DIR, "diverged_0000002.json")) as file:
        reports = json.load(file)["processes"]
    assert [x["parts"][0]["losses"]["loss_poisoned"] for x in reports] == [0.0, "nan"]


def fail_in_second_process(folder: str) -> None:
    """Ends with a message in one process while the other one waits for it."""
    sys.stderr = open(os.path.join(folder, f"stderr{comm.get_rank()}"), "w")  # noqa: SIM115
    with friendly_errors():
        if comm.get_rank() == 1:
            raise OSError("no room")
        comm.synchronize()


def evaluate_in_two_processes(text: str, folder: str) -> None:
    """Checks that both write into one new folder, then trains with a test set that is missing."""
    os.environ["DETECTRON2_DATASETS"] = os.path.join(folder, "none")
    sys.stderr = open(os.path.join(folder, f"stderr{comm.get_rank()}"), "w")  # noqa: SIM115
    with friendly_errors():
        name = "tiny_for_engine_tests"
        cfg = tiny_cfg("", name)
        cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
        register_tiny_dataset(name, Path(f"{cfg.OUTPUT_DIR}_images{comm.get_rank()}"))
        folders = comm.all_gather(evaluation_config(cfg).OUTPUT_DIR)
        assert len(set(folders)) == 1 and "eval/a-" in folders[0] and folders[0] != cfg.OUTPUT_DIR
        assert "DATASETS.TEST=prw_test,SEED=7" in folders[0]
        PersonSearchTrainer(cfg)


def train_by_launcher(folder: str, parts: int = 1, more_iterations: bool = False) -> None:
    """Trains the tiny model, whose random jitter is off, in one process of any launcher.

    Args:
        folder: Receives the checkpoints.
        parts: Parts of a batch (SOLVER.ACCUMULATION_STEPS).
        more_iterations: Resumes a finished training for two more iterations.
    """
    name = "tiny_for_launchers"
    register_tiny_dataset(name, Path(folder) / f"images{comm.get_rank()}")
    cfg = tiny_cfg(folder, name)
    cfg.SEED, cfg.SOLVER.MAX_ITER = 3, 6 if more_iterations else 4
    cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.STEPS = parts, (3,)
    seed_all_rng(1 + comm.get_rank())
    trainer = PersonSearchTrainer(cfg)
    getattr(trainer.model, "module", trainer.model).jitter = 0.0
    trainer.resume_or_load(resume=more_iterations)
    trainer.train()


def run_train_net(dataset: str, images: str, arguments: list[str]) -> None:
    """One of several processes of ``train_net.py``, with the tiny data set registered."""
    register_tiny_dataset(dataset, Path(images) / str(comm.get_rank()))
    train_net = load_program("train_net.py")
    train_net.run(train_net.parse_args(arguments))
