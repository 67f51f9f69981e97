# SPDX-License-Identifier: Apache-2.0
"""Moving average of the weights: its rule, trainings and checkpoints with it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from tiny_runs import compare_interrupted, train
from torch import nn

from person_search.engine import AtomicCheckpointer, AveragedWeights, PersonSearchTrainer
from person_search.utils.model_card import CARD_KEY
from person_search.utils.weight_files import read_card

EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.9)


class Mixed(nn.Module):
    """A trained weight, a frozen one, and statistics with a counter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("constant", torch.tensor(1 / 3, dtype=torch.float64), False)


def test_the_rule_by_hand() -> None:
    model = Mixed()
    average = AveragedWeights(model, 0.25)
    average.update_parameters(model)
    assert average.started and average.num_updates == 0
    weight = mean = 0.0
    for n in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(n)
            model.mean.fill_(-2 * n)
            model.count.add_(7)
        average.update_parameters(model)
        keep = min(0.25, (1 + n) / (10 + n))  # 2/11 in the first update, 0.25 from the second on
        weight, mean = keep * weight + (1 - keep) * n, keep * mean + (1 - keep) * -2 * n
        ours = average.module
        assert ours.weight.tolist() == pytest.approx([weight] * 2, rel=1e-6)
        assert ours.mean.item() == pytest.approx(mean, rel=1e-6)
        assert ours.count.item() == 7 * n and ours.constant == model.constant
    assert average.num_updates == 5


def test_frozen_weights_are_shared_and_not_saved_twice() -> None:
    model = Mixed()
    average = AveragedWeights(model, 0.9)
    assert average.module.frozen.data_ptr() == model.frozen.data_ptr()
    assert average.module.weight.data_ptr() != model.weight.data_ptr()
    assert not any(p.requires_grad for p in average.parameters()) and not average.module.training
    assert set(average.average_state()["weights"]) == {"weight", "mean", "count"}


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_wrong_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"SOLVER.EMA.DECAY is {decay}"):
        AveragedWeights(Mixed(), decay)


def test_precise_statistics_are_refused(make_cfg) -> None:
    with pytest.raises(ValueError, match="PRECISE_BN"):
        PersonSearchTrainer(make_cfg("out", *EMA, "TEST.PRECISE_BN.ENABLED", True))


@pytest.mark.parametrize("parts", [1, 2])
def test_resumed_equals_uninterrupted(make_cfg, parts: int) -> None:
    """Raw weights and average, bit for bit, with an evaluation in between."""
    opts = (*EMA, "TEST.EVAL_PERIOD", 4, "SOLVER.ACCUMULATION_STEPS", parts)
    compare_interrupted(make_cfg("whole", *opts), make_cfg("broken", *opts))
    finals = [torch.load(final(make_cfg(x)), weights_only=True) for x in ("whole", "broken")]
    assert finals[0]["model"].keys() == finals[1]["model"].keys()
    for name, value in finals[0]["model"].items():
        assert torch.equal(value, finals[1]["model"][name])


def final(cfg) -> Path:
    return Path(cfg.OUTPUT_DIR) / "model_final_ema.pth"


def test_the_average_does_not_change_the_training(make_cfg) -> None:
    without, losses = train(make_cfg("without"))
    averaged, averaged_losses = train(make_cfg("with", *EMA))
    assert losses == averaged_losses
    states = []
    for trainer in (without, averaged):
        path = Path(trainer.cfg.OUTPUT_DIR) / "model_final.pth"
        states.append(torch.load(path, weights_only=True))
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name])
    assert set(states[0]["trainer"]["hooks"]) == {"LRScheduler", "ResumableCheckpointer"}
    assert set(states[1]["trainer"]["hooks"]) == {*states[0]["trainer"]["hooks"], "EMAHook"}
    assert not final(without.cfg).exists()
    assert any(
        not torch.equal(v, averaged.average.module.state_dict()[k])
        for k, v in averaged.model.state_dict().items()
    )


def test_the_average_is_evaluated(run, tmp_path) -> None:
    """At the end of the training, and again from each file that holds the average."""
    options = [str(x) for x in (*EMA, "TEST.EVAL_PERIOD", 40)]
    folder = run("SOLVER.MAX_ITER", "120", "SOLVER.STEPS", "()", *options)
    trained = json.loads((folder / "results.json").read_text())

    def evaluated(*arguments: str, where: str = "") -> dict:
        (folder / where / "results.json").unlink(missing_ok=True)
        run("--eval-only", *arguments)
        return json.loads((folder / where / "results.json").read_text())

    weights = ("MODEL.WEIGHTS", str(folder / "model_final_ema.pth"))
    assert evaluated(*weights) == trained
    assert evaluated("--resume", *options) == trained
    raw = evaluated("MODEL.WEIGHTS", str(folder / "model_final.pth"), where="eval/model_final")
    assert raw != trained
    assert raw == evaluated("--resume", where="eval/SOLVER.EMA.ENABLED=false")
    best = json.loads((folder / "model_best.json").read_text())
    weights = ("MODEL.WEIGHTS", str(folder / "model_best.pth"))
    found = evaluated(*weights, where="eval/model_best")
    assert found["search"]["mAP"] == pytest.approx(best["value"])
    content = torch.load(folder / "model_final_ema.pth", weights_only=True)
    assert set(content) == {"model", "iteration", CARD_KEY} and content["iteration"] == 119
    # evaluated weights have their results in the card, others have none
    names = ("final_ema", "best", "final")
    cards = {name: read_card(folder / f"model_{name}.pth") for name in names}
    assert cards["final"].metrics == {} and cards["final"].score_thresh is None
    for name, result in (("final_ema", trained), ("best", found)):
        metrics = cards[name].metrics["tiny_for_engine_tests"]
        assert metrics["search"]["mAP"] == pytest.approx(result["search"]["mAP"], abs=0.006)
        assert cards[name].score_thresh == 0.2
    assert cards["final"] == replace(cards["best"], metrics={}, score_thresh=None)
    assert cards["final"].method == "TinyPersonSearch" and cards["final"].images == 6


def test_enabled_and_disabled_between_runs(make_cfg, caplog) -> None:
    train(make_cfg(), interrupt_after=5)
    trainer, _ = train(make_cfg("out", *EMA), resume=True)
    assert "holds no average" in caplog.text
    assert trainer.average.num_updates == 4  # iterations 4 to 7
    train(make_cfg("other", *EMA), interrupt_after=5)
    _, losses = train(make_cfg("other"), resume=True)
    assert sorted(losses) == [4, 5, 6, 7]


def test_an_interrupted_training_writes_no_final_average(make_cfg) -> None:
    cfg = make_cfg("out", *EMA)
    train(cfg, interrupt_after=7)  # the last iteration
    assert not final(cfg).exists()
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.start_iter == 8
    model = build_model(trainer.cfg)
    AtomicCheckpointer(model).load(str(final(cfg)), need_whole=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trainer.average.module.state_dict()[name])
