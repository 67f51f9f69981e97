# SPDX-License-Identifier: Apache-2.0
"""Record of a run, real experiment trackers without a network, drawn evaluations."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from tiny_runs import train

from person_search import __version__
from person_search.engine import PersonSearchTrainer, tracking
from person_search.engine.tracking import (
    Tracker,
    build_trackers,
    draws_evaluation,
    fingerprint,
    git_state,
)


class Recorder(Tracker):
    """A tracker that keeps everything."""

    name = "recorder"

    def __init__(self, cfg) -> None:
        super().__init__(cfg)
        self.values, self.images, self.completed = {}, {}, None

    def log(self, values, iteration) -> None:
        self.values.setdefault(iteration, {}).update(values)

    def log_image(self, name, image, iteration) -> None:
        self.images.setdefault(iteration, {})[name] = image

    def finish(self, *, completed) -> None:
        self.completed = completed


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(tracking.TRACKERS, "recorder", Recorder)
    find_spec = importlib.util.find_spec

    def find(name, package=None):
        if name in ("recorder", "tensorboard"):
            return find_spec("json") if name == "recorder" else None
        return find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


# ---- record of the run ---------------------------------------------------------------------------
def test_each_start_is_recorded(make_cfg, dataset) -> None:
    cfg = make_cfg()
    train(cfg, interrupt_after=5)
    train(cfg, resume=True)
    first, second = json.loads(Path(cfg.OUTPUT_DIR, "run.json").read_text())["starts"]
    assert (first["iteration"], second["iteration"]) == (0, 4)
    assert first["config"] == second["config"] and first["processes"] == 1
    assert first["data"] == {dataset: fingerprint(DatasetCatalog.get(dataset))}
    assert first["environment"]["person-search"] == __version__
    assert first["command"] == shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def test_a_foreign_run_file_is_replaced(make_cfg) -> None:
    cfg = make_cfg()
    path = Path(cfg.OUTPUT_DIR, "run.json")
    path.parent.mkdir(exist_ok=True)
    for foreign in ("[1, 2", '{"starts": 5}'):
        path.write_text(foreign)
        tracking.record_start(cfg, 7)
        assert [start["iteration"] for start in json.loads(path.read_text())["starts"]] == [7]


def test_fingerprint_depends_on_the_annotations_and_not_on_the_folder(dataset) -> None:
    records = DatasetCatalog.get(dataset)
    base = fingerprint(records)
    assert base["images"] == len(records)
    assert base["boxes"] == sum(len(record["annotations"]) for record in records)
    moved = [{**r, "file_name": f"elsewhere/{Path(r['file_name']).name}"} for r in records]
    assert fingerprint(moved) == base
    box = [*records[0]["annotations"]]
    box[0] = {**box[0], "bbox": [v + 1 for v in box[0]["bbox"]]}
    assert fingerprint([{**records[0], "annotations": box}, *records[1:]]) != base
    assert fingerprint(records[1:]) != base


def test_state_of_the_checkout(tmp_path) -> None:
    assert git_state(tmp_path) is None

    def git(*words) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    (tmp_path / "file").write_text("2")
    (tmp_path / "untracked").write_text("3")
    commit = git("rev-parse", "HEAD").strip()
    assert git_state(tmp_path) == {"commit": commit, "changed_files": 1}


# ---- trackers ------------------------------------------------------------------------------------
def test_losses_metrics_and_images_reach_a_tracker(make_cfg, dataset, recorder) -> None:
    cfg = make_cfg(
        "out", "TEST.EVAL_PERIOD", 2, "TRACKING.SERVICES", ["recorder"], "TRACKING.IMAGES_EVERY", 3
    )  # fmt: skip
    trainer, _ = train(cfg)
    (tracker,) = trainer.trackers
    assert tracker.completed
    logged = {i: v["total_loss"] for i, v in tracker.values.items() if "total_loss" in v}
    assert max(logged) == 7 and logged[7] > 0
    last = max(i for i, values in tracker.values.items() if "search/mAP" in values)
    assert tracker.values[last]["search/mAP"] == trainer._last_eval_results["search"]["mAP"]
    assert sorted(tracker.images) == [5, 8]  # the third evaluation, and the one after training
    images = tracker.images[8]
    assert any(name.startswith(f"{dataset}/search_") for name in images)
    assert f"{dataset}/detections_1" in images
    for image in images.values():
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == "uint8"


def test_an_interrupted_training_ends_as_failed(make_cfg, recorder) -> None:
    cfg = make_cfg("out", "TRACKING.SERVICES", ["recorder"])
    trainer, _ = train(cfg, interrupt_after=5)
    assert [tracker.completed for tracker in trainer.trackers] == [False]


def test_a_new_training_forgets_the_runs_of_the_old_one(make_cfg) -> None:
    cfg = make_cfg()
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    tracking.remember_id(cfg, "wandb", "abc")
    assert tracking.remembered_id(cfg, "wandb") == "abc"
    tracking.forget_runs(cfg)
    assert tracking.remembered_id(cfg, "wandb") is None


def test_a_failing_tracker_does_not_end_the_training(make_cfg, recorder, monkeypatch, caplog):
    def fail(self, values, iteration):
        raise ConnectionError("the service is away")

    monkeypatch.setattr(Recorder, "log", fail)
    _, losses = train(make_cfg("out", "TRACKING.SERVICES", ["recorder"]))
    assert sorted(losses) == list(range(8))
    messages = [r.message for r in caplog.records if "gets no more values" in r.message]
    assert len(messages) == 1 and "the service is away" in messages[0]


def test_which_evaluations_are_drawn(make_cfg, recorder) -> None:
    def drawn(*opts) -> list[int]:
        cfg = make_cfg("out", "TEST.EVAL_PERIOD", 2, *opts)  # of 8 iterations
        return [i for i in (1, 3, 5, 7) if draws_evaluation(cfg, i)]

    services = ("TRACKING.SERVICES", ["recorder"])
    assert drawn(*services) == [1, 3, 5, 7]
    assert drawn(*services, "TRACKING.IMAGES_EVERY", 3) == [5, 7]
    assert drawn(*services, "TRACKING.IMAGES_EVERY", 0) == []
    assert drawn() == []  # nothing to show them


@pytest.mark.parametrize(
    ("service", "message"),
    [("wandbb", "names 'wandbb'; known: 'wandb', 'mlflow'"), ("mlflow", "not installed: pip")],
)
def test_unusable_services(make_cfg, monkeypatch, service, message) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        PersonSearchTrainer(make_cfg("out", "TRACKING.SERVICES", [service]))


def test_a_service_that_refuses_is_one_message(make_cfg, monkeypatch) -> None:
    def refuse(cfg):
        raise PermissionError("api key missing")

    monkeypatch.setitem(tracking.TRACKERS, "wandb", refuse)
    with pytest.raises(ValueError, match=r"wandb \(TRACKING.SERVICES\).*api key missing"):
        build_trackers(make_cfg("out", "TRACKING.SERVICES", ["wandb"]))


def log_twice(cfg) -> list[Tracker]:
    """Starts, logs and ends a run, and continues it to its end."""
    import numpy as np

    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 2

    made = []
    for iteration in (0, 1):
        trackers = build_trackers(cfg)
        with EventStorage(iteration) as storage:
            storage.put_scalar("total_loss", 2.0 - iteration)
            for tracker in trackers:
                tracker.write()
                tracker.write_image("a/b", np.zeros((4, 5, 3), np.uint8), iteration)
                assert not tracker._failed
                tracker.close()
        made += trackers
    return made


def test_mlflow(make_cfg, tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    cfg = make_cfg("out", "TRACKING.SERVICES", ["mlflow"], "TRACKING.NAME", "first")
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    log_twice(cfg)
    (run,) = mlflow.search_runs(experiment_names=["person-search"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "total_loss")
    assert [(m.step, m.value) for m in history] == [(0, 2.0), (1, 1.0)]
    assert run.info.run_name == "first" and run.info.status == "FINISHED"
    artifacts = [a.path for a in mlflow.MlflowClient().list_artifacts(run.info.run_id)]
    assert sorted(artifacts) == ["config.yaml", "images"]


def test_wandb(make_cfg, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = make_cfg("out", "TRACKING.SERVICES", ["wandb"])
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    first, second = log_twice(cfg)
    assert first.run.id == second.run.id and first.run.name == "out"
    written = list(Path(cfg.OUTPUT_DIR, "wandb").glob("offline-run-*/*.wandb"))
    assert written and all(path.stat().st_size > 0 for path in written)
