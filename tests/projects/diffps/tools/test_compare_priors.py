# SPDX-License-Identifier: Apache-2.0
"""The comparison of priors: its commands and its table; the trainings take too long for a test."""

import json
import shlex

import pytest
from programs import ROOT, load_program

RESULT = {"search": {"mAP": 61.25, "top1": 70.0}, "detection": {"AP50": 80.0}}


@pytest.fixture(scope="module")
def tool():
    return load_program("projects/DiffPS/tools/compare_priors.py")


@pytest.fixture
def comparison(tool, tmp_path, monkeypatch):
    """Records commands instead of running them; a training writes its results."""
    prior = tmp_path / "prior"
    prior.mkdir()
    (prior / "model_index.json").write_text("{}")
    comparison = tool.Comparison(tmp_path / "out", prior, None, ["SOLVER.MAX_ITER", "5"])
    comparison.output.mkdir()
    comparison.ran = []

    def command(name, text):
        comparison.ran.append((name, text))
        if text.startswith("train_net.py"):
            folder = comparison.output / name
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps(RESULT))
        return 1.5

    monkeypatch.setattr(comparison, "command", command)
    monkeypatch.setattr(tool, "backbone_mflop", lambda arguments: 100.0)
    return comparison


def test_frozen_variants_fill_a_cache_and_scratch_has_none(comparison) -> None:
    comparison.prepare()
    rows = {v: comparison.run(v, seed=1) for v in ("trained", "random", "scratch")}
    names = [name for name, _ in comparison.ran]
    assert names == [
        *("data", "random", "trained_cache", "trained_seed1", "random_cache", "random_seed1"),
        "scratch_seed1",
    ]
    commands = dict(comparison.ran)
    assert f"MODEL {comparison.prior} " in commands["trained_seed1"]
    assert f"MODEL {comparison.output}/random_diffusion " in commands["random_seed1"]
    assert "BACKBONE.MODEL" not in commands["scratch_seed1"]
    assert "--keep vae" in commands["random"]
    assert all("SOLVER.MAX_ITER 5" in c for n, c in comparison.ran if n.endswith("seed1"))
    assert rows["random"] == {
        **{"search/mAP": 61.25, "search/top1": 70.0, "detection/AP50": 80.0},
        **{"mflop": 100.0, "cache_minutes": 1.5, "minutes": 1.5},
    }
    assert rows["scratch"]["cache_minutes"] == 0.0


def test_existing_results_are_used_again(comparison) -> None:
    first = comparison.run("trained", seed=1)
    done = len(comparison.ran)
    assert comparison.run("trained", seed=1) == first
    assert len(comparison.ran) == done
    comparison.run("trained", seed=2)  # the cache serves all seeds
    assert [name for name, _ in comparison.ran[done:]] == ["trained_seed2"]


@pytest.mark.parametrize("last", ["training", "cache"])
def test_a_killed_run_loses_only_its_time(comparison, tool, last, monkeypatch) -> None:
    """Killed after a command has finished, but before its minutes are stored."""
    command = comparison.command

    def killed_after(name, text):
        minutes = command(name, text)
        if ("train_net.py" in text) == (last == "training"):
            raise KeyboardInterrupt
        return minutes

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "command", killed_after)
        with pytest.raises(KeyboardInterrupt):
            comparison.run("trained", seed=1)
    first, second = (comparison.run("trained", seed) for seed in (1, 2))
    known = {"training": (1.5, None, 1.5), "cache": (None, 1.5, 1.5)}[last]
    assert (first["cache_minutes"], first["minutes"], second["minutes"]) == known
    trainings = [name for name, text in comparison.ran if "train_net.py" in text]
    assert trainings == ["trained_seed1", "trained_seed2"], "no training runs twice"
    rows = tool.markdown({"trained": {1: first}}).splitlines()[2].split(" | ")
    assert [rows[-2], rows[-1].rstrip(" |")] == (
        ["1.5", "unknown"] if last == "training" else ["unknown", "1.5"]
    )
    both = tool.markdown({"trained": {1: first, 2: second}}).splitlines()[2]
    assert both.rstrip(" |").endswith("1.5")


def test_prior_must_be_a_diffusers_folder(tool, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder in diffusers format"):
        tool.Comparison(tmp_path / "out", tmp_path / "none", None, []).prepare()


def test_table(tool) -> None:
    row = {"search/mAP": 60.0, "search/top1": 70.0, "detection/AP50": 80.0}
    costs = {"mflop": 1560.6, "cache_minutes": 2.46, "minutes": 10.0}
    results = {
        "scratch": {1: row | costs},
        "trained": {1: row | costs, 2: row | costs | {"search/mAP": 62.0, "minutes": 11.0}},
    }
    lines = tool.markdown(results).splitlines()
    assert len(lines) == 4  # random was not trained
    assert lines[2] == (
        "| UNet trained on synthetic scenes, frozen | 2 | 61.0 ± 1.4 | 70.0 ± 0.0 | 80.0 ± 0.0 "
        "| 1561 | 2.5 | 10.5 |"
    )
    assert lines[3].startswith("| ResNet, trained with the heads | 1 | 60.0 | 70.0 | 80.0 | 1561")


def test_operations_of_the_backbone(tool, tmp_path) -> None:
    """Only the projections of a ResNet depend on RESNET.CHANNELS: the difference is known."""
    config = shlex.quote(f"{ROOT}/configs/DiffPS/tiny/priors/scratch.yaml")
    keys = f"--config-file {config} MODEL.DIFFPS.RESNET.CHANNELS "
    few, many = (tool.backbone_mflop(keys + x) for x in ("'[48, 40, 16]'", "'[48, 40, 32]'"))
    cells = 32 * 40
    assert many - few == pytest.approx(4 * 16 * 64 * cells * 2 / 1e6)
