# SPDX-License-Identifier: Apache-2.0
"""An interrupted and resumed training is bit for bit the one without interruption."""

import ast
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from tiny_runs import compare_interrupted, compare_interrupted_process, train

from person_search.engine import launch


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
    launch(compare_interrupted_process, num_gpus=0, num_processes=2, args=(str(tmp_path),))
    assert len(ast.literal_eval((tmp_path / "losses.txt").read_text())) == 8


def test_without_a_seed_the_resumed_run_takes_over_the_drawn_one(make_cfg) -> None:
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
    assert "state of 2 processes and this run has 1" in caplog.text


def test_plain_detectron2_reads_the_file(make_cfg) -> None:
    cfg = make_cfg()
    trainer, _ = train(cfg)
    model = build_model(trainer.cfg)
    rest = DetectionCheckpointer(model).load(str(Path(cfg.OUTPUT_DIR) / "model_final.pth"))
    assert rest["iteration"] == 7 and rest["trainer"]["iteration"] == 7
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
