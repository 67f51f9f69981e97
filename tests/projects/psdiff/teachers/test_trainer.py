# SPDX-License-Identifier: Apache-2.0
"""Training of teachers: schedule, what they learn, going on after an interruption, the scripts."""

import os

import numpy as np
import pytest
import torch
from programs import load_program
from psdiff_tiny import EMBED_DIM
from safetensors.torch import load_file
from teacher_tiny import METHODS, paint_persons, registered, teacher_cfg

from psdiff.teachers.embed import embed_scenes
from psdiff.teachers.registry import build_teacher
from psdiff.teachers.schedule import build_teacher_optimizer, rate_factor, total_iterations
from psdiff.teachers.trainer import TeacherTrainer


@pytest.fixture
def persons(tmp_path):
    with registered(paint_persons(tmp_path, unlabeled=True)) as records:
        yield records


@pytest.fixture(scope="module")
def train():
    """The function behind ``train_teacher.py``."""
    return load_program("projects/PSDiff/tools/train_teacher.py").train


# ---- schedule ------------------------------------------------------------------------------------


def test_step_schedule_with_warm_up_by_hand(tmp_path):
    cfg = teacher_cfg(
        tmp_path, SCHEDULE="step", STEP_EPOCHS=[4, 7], WARMUP_EPOCHS=2, MAX_ITER=0, EPOCHS=9
    )
    factor = rate_factor(cfg, per_epoch=10)
    assert total_iterations(cfg, 10) == 90
    expected = {0: 0.1, 10: 0.55, 20: 1.0, 39: 1.0, 40: 0.1, 69: 0.1, 70: 0.01, 89: 0.01}
    assert {i: factor(i) for i in expected} == pytest.approx(expected)


def test_cosine_schedule_goes_to_zero(tmp_path):
    factor = rate_factor(teacher_cfg(tmp_path, MAX_ITER=100), per_epoch=7)
    assert [factor(i) for i in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])


def test_wrong_settings_of_a_training_are_named(tmp_path):
    with pytest.raises(ValueError, match="SCHEDULE is 'linear'; allowed: 'step', 'cosine'"):
        rate_factor(teacher_cfg(tmp_path, SCHEDULE="linear"), 10)
    with pytest.raises(ValueError, match="EPOCHS is 0 and MAX_ITER 0"):
        total_iterations(teacher_cfg(tmp_path, EPOCHS=0, MAX_ITER=0), 10)
    with pytest.raises(ValueError, match="OPTIMIZER is 'Lion'; allowed: 'Adam', 'SGD'"):
        build_teacher_optimizer(teacher_cfg(tmp_path, OPTIMIZER="Lion"), torch.nn.Linear(1, 1))


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_trained_teacher_tells_colors_apart(name, persons, tmp_path):
    cfg = teacher_cfg(tmp_path / "out", name)
    trainer = TeacherTrainer(cfg, persons, num_pids=4)
    net = trainer.run()
    feats = torch.cat(list(embed_scenes(net, persons, cfg)))[:, 0].numpy()
    pids = np.array([a["person_id"] for r in persons for a in r["annotations"]])
    feats, pids = feats[pids >= 0], pids[pids >= 0]
    sim = feats @ feats.T
    same = pids[:, None] == pids
    np.testing.assert_allclose(np.linalg.norm(feats, axis=1), 1.0, rtol=1e-5)
    assert sim[same].min() > sim[~same].max()

    again = build_teacher(cfg).eval()
    again.load(trainer.export())
    assert again.weights_hash() == net.weights_hash()


def test_weights_of_another_teacher_are_refused(tmp_path):
    path = str(tmp_path / "weights.safetensors")
    build_teacher(teacher_cfg(tmp_path)).save(path)
    cfg = teacher_cfg(tmp_path)
    cfg.MODEL.REID.EMBED_DIM = EMBED_DIM * 2
    for other in (cfg, teacher_cfg(tmp_path, "mgn")):
        with pytest.raises(ValueError, match="MODEL.PSDIFF.TEACHER.WEIGHTS.*does not fit"):
            build_teacher(other).load(path)


# ---- interruption --------------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for whatever ends a training early."""


def last_checkpoint(cfg):
    folder = os.path.join(cfg.OUTPUT_DIR, "teacher_checkpoints")
    return torch.load(os.path.join(folder, "model_final.pth"), weights_only=False)


def assert_equal(first, second, where=""):
    """Nested dicts and lists of tensors and numbers are the same bit for bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    else:
        assert first == second, where


@pytest.mark.parametrize("name", ["hhcl", "pplr"])
def test_a_resumed_training_is_the_uninterrupted_one(name, persons, tmp_path, train, monkeypatch):
    def cfg_in(folder):
        settings = {"MAX_ITER": 12, "CHECKPOINT_EPOCHS": 2, "COLOR_JITTER": [0.2, 0.2]}
        return teacher_cfg(tmp_path / folder, name, **settings)

    torch.manual_seed(5)
    whole = load_file(train(cfg_in("whole"), resume=False))

    step, done = TeacherTrainer.run_step, []

    def stop_at_seven(trainer):
        if trainer.iter == 7:
            raise Interrupted
        done.append(trainer.iter)
        step(trainer)

    torch.manual_seed(5)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TeacherTrainer, "run_step", stop_at_seven)
        train(cfg_in("broken"), resume=False)
    assert done == list(range(7))
    torch.manual_seed(77)  # another process would begin with other random numbers
    resumed = load_file(train(cfg_in("broken"), resume=True))

    assert_equal(whole, resumed)
    first, second = last_checkpoint(cfg_in("whole")), last_checkpoint(cfg_in("broken"))
    for part in ("model", "trainer"):
        assert_equal(first[part], second[part], part)


def test_a_finished_training_is_not_done_again(persons, tmp_path, train, caplog):
    cfg = teacher_cfg(tmp_path / "out", MAX_ITER=2)
    first = load_file(train(cfg, resume=True))  # nothing there yet: starts
    second = load_file(train(cfg, resume=True))
    assert_equal(first, second)


def test_a_skipped_image_is_not_trained_on(persons, tmp_path):
    os.truncate(persons[1]["file_name"], 200)
    cfg = teacher_cfg(tmp_path / "out", MAX_ITER=2)
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    trainer = TeacherTrainer(cfg, persons, num_pids=4)
    count = sum(len(r["annotations"]) for r in persons) - 2
    assert len(trainer.crops) == len(trainer.loss.pids) == count
    trainer.run()


@pytest.mark.parametrize("annotations", [0, 1])
def test_a_training_set_without_identities_is_refused(persons, tmp_path, annotations):
    """No persons at all, or one identity only."""
    for record in persons:
        record["annotations"] = record["annotations"][:annotations]
        for annotation in record["annotations"]:
            annotation["person_id"] = 0
    with pytest.raises(ValueError, match=f"two labeled identities.* has {annotations}"):
        TeacherTrainer(teacher_cfg(tmp_path / "out"), persons, num_pids=annotations)
