# SPDX-License-Identifier: Apache-2.0
"""The trainer as a whole on the tiny model."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.engine.hooks import EvalHook
from tiny_model import register_tiny_dataset, unregister_dataset
from tiny_runs import train

from person_search.engine import (
    BestModelCheckpointer,
    IncompatibleCheckpointError,
    PersonSearchTrainer,
    ResumableCheckpointer,
)
from person_search.engine.trainer import build_step_trainer
from person_search.utils.backend import backend_name


def test_learns_and_reports_in_detectron2s_form(make_cfg, dataset) -> None:
    cfg = make_cfg(
        "out", "SOLVER.MAX_ITER", 200, "SOLVER.STEPS", (160,), "SOLVER.CHECKPOINT_PERIOD", 1000,
        "TEST.EVAL_PERIOD", 100,
    )  # fmt: skip
    trainer, losses = train(cfg)
    results = trainer._last_eval_results
    assert set(results) == {"detection", "search"}
    assert results["search"]["mAP"] > 60 and results["detection"]["recall"] > 60
    assert losses[199] < 0.2 * losses[0]

    folder = Path(cfg.OUTPUT_DIR)
    written = json.loads((folder / "results.json").read_text())
    assert written == {"backend": backend_name(), "datasets": [dataset], **results}
    lines = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    logged = {x["iteration"]: x["search/mAP"] for x in lines if "search/mAP" in x}
    assert max(logged) >= 199 and logged[max(logged)] == results["search"]["mAP"]  # EvalHook
    assert json.loads((folder / "model_best.json").read_text())["value"] == max(logged.values())
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def kinds(trainer: PersonSearchTrainer) -> list[type]:
    return [type(h) for h in trainer.build_hooks()]


def test_hooks(make_cfg) -> None:
    found = kinds(PersonSearchTrainer(make_cfg()))
    assert BestModelCheckpointer not in found
    assert found.index(ResumableCheckpointer) < found.index(EvalHook)
    found = kinds(PersonSearchTrainer(make_cfg("out", "TEST.EVAL_PERIOD", 5)))
    assert found.index(BestModelCheckpointer) == found.index(EvalHook) + 1


def test_two_test_sets(make_cfg, dataset, tmp_path) -> None:
    register_tiny_dataset("second_tiny", tmp_path / "second", 4)
    cfg = make_cfg("out", "DATASETS.TEST", (dataset, "second_tiny"), "TEST.EVAL_PERIOD", 4)
    trainer, _ = train(cfg)
    unregister_dataset("second_tiny")
    assert list(trainer._last_eval_results) == [dataset, "second_tiny"]
    record = json.loads((Path(cfg.OUTPUT_DIR) / "model_best.json").read_text())
    assert record["metric"] == f"{dataset}/search/mAP"


def test_evaluation_does_not_disturb_the_random_numbers(make_cfg) -> None:
    trainer = PersonSearchTrainer(make_cfg())
    state = torch.get_rng_state()
    first = trainer.test(trainer.cfg, trainer.model)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.test(trainer.cfg, trainer.model) == first


def test_weights_to_start_from(make_cfg) -> None:
    first, _ = train(make_cfg())
    weights = str(Path(first.cfg.OUTPUT_DIR) / "model_final.pth")
    second = PersonSearchTrainer(make_cfg("other", "MODEL.WEIGHTS", weights))
    second.resume_or_load(resume=False)
    assert second.start_iter == 0
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_resuming_with_another_architecture(make_cfg) -> None:
    train(make_cfg())
    wider = PersonSearchTrainer(make_cfg("out", "MODEL.REID.EMBED_DIM", 9))
    with pytest.raises(IncompatibleCheckpointError, match=r"embed.weight \(8, 96\) in the file"):
        wider.resume_or_load(resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_amp_without_a_gpu(make_cfg) -> None:
    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED needs a CUDA device"):
        PersonSearchTrainer(make_cfg("out", "SOLVER.AMP.ENABLED", True))


def test_accumulation_steps_are_checked(make_cfg) -> None:
    cfg = make_cfg("out", "SOLVER.ACCUMULATION_STEPS", 0)
    with pytest.raises(ValueError, match="ACCUMULATION_STEPS is 0"):
        build_step_trainer(cfg, torch.nn.Linear(1, 1), [], None)


def test_loss_scale_of_mixed_precision(make_cfg, monkeypatch) -> None:
    """Only the building: there may be no GPU to run it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for opts, expected in (((), 2.0**16), (("SOLVER.AMP.INIT_SCALE", 2.0**13), 2.0**13)):
        cfg = make_cfg("out", "SOLVER.AMP.ENABLED", True, *opts)
        step = build_step_trainer(cfg, torch.nn.Linear(1, 1), [], None)
        assert step.grad_scaler.get_scale() == expected
    cfg = make_cfg("out", "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.INIT_SCALE", 0.0)
    with pytest.raises(ValueError, match="SOLVER.AMP.INIT_SCALE is 0.0; it must be within"):
        build_step_trainer(cfg, torch.nn.Linear(1, 1), [], None)


def test_a_models_own_initial_weights_are_loaded_where_a_training_starts(make_cfg) -> None:
    """After MODEL.WEIGHTS, and neither in a resumed training nor in an evaluation."""

    def start(cfg, resume: bool) -> list[str]:
        trainer, called = PersonSearchTrainer(cfg), []
        embed = trainer.model.embed.weight.detach().clone()
        changed = lambda: not torch.equal(embed, trainer.model.embed.weight)  # noqa: E731
        trainer.model.load_initial_weights = lambda: called.append(changed())
        trainer.resume_or_load(resume)
        return called

    first, _ = train(make_cfg())
    assert start(make_cfg("other"), resume=False) == [False]
    assert start(make_cfg("other"), resume=True) == [False]  # there is nothing to resume
    weights = str(Path(first.cfg.OUTPUT_DIR) / "model_final.pth")
    cfg = make_cfg("other", "MODEL.WEIGHTS", weights, "SEED", 5)
    assert start(cfg, resume=False) == [True]
    assert start(make_cfg(), resume=True) == []


def test_the_schedule_follows_the_number_of_processes(make_cfg) -> None:
    """As README.md has it: half the processes, half the batch, twice the iterations."""
    cfg = make_cfg("out", "SOLVER.REFERENCE_WORLD_SIZE", 2, "TEST.EVAL_PERIOD", 3)
    solver = PersonSearchTrainer(cfg).cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (1, 0.0015)
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (16, (12,), 4)
