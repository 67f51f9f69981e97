# SPDX-License-Identifier: Apache-2.0
"""The trainer as a whole on the tiny model."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.engine.hooks import EvalHook
from detectron2.modeling import build_backbone, build_model
from tiny_model import register_tiny_dataset, tiny_cfg, unregister_dataset
from tiny_runs import train
from torch import nn

from person_search.engine import (
    BestModelCheckpointer,
    IncompatibleCheckpointError,
    PersonSearchTrainer,
    ResumableCheckpointer,
)
from person_search.engine.trainer import build_step_trainer, warn_of_frozen_random_weights
from person_search.evaluation import PersonSearchEvaluator
from person_search.utils.backend import backend_name


@pytest.mark.slow
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


@pytest.mark.parametrize("precision", ["eager", "float32"])
def test_evaluation_does_not_change_the_model(make_cfg, precision) -> None:
    """It runs on an optimized copy, which shares modules with the model in training."""
    trainer = PersonSearchTrainer(make_cfg("out", "TEST.PRECISION", precision))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    modes = [module.training for module in trainer.model.modules()]
    trainable = [p.requires_grad for p in trainer.model.parameters()]
    assert trainer.test(trainer.cfg, trainer.model)
    assert [module.training for module in trainer.model.modules()] == modes and True in modes
    assert [p.requires_grad for p in trainer.model.parameters()] == trainable
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() == before.keys()


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
    with pytest.raises(ValueError, match="float16 needs a CUDA device; on a CPU, set DTYPE to"):
        PersonSearchTrainer(make_cfg("out", "SOLVER.AMP.ENABLED", True))


def test_unknown_type_of_mixed_precision(make_cfg) -> None:
    with pytest.raises(ValueError, match=r"AMP.DTYPE is 'half'; known: \('float16', 'bfloat16'\)"):
        PersonSearchTrainer(make_cfg("out", "SOLVER.AMP.DTYPE", "half"))


def test_bfloat16_on_a_cpu_and_full_precision_afterwards(make_cfg) -> None:
    """Matrix products are rounded, weights are not; a run goes on in the other precision."""
    opts = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16")
    trainer, _ = train(make_cfg("out", *opts))
    assert {x.dtype for x in trainer.model.parameters()} == {torch.float32}
    exact, _ = train(make_cfg("exact"))
    for name, value in trainer.model.state_dict().items():
        assert torch.allclose(value, exact.model.state_dict()[name], rtol=0.1, atol=0.02), name
    assert any(
        not torch.equal(value, exact.model.state_dict()[name])
        for name, value in trainer.model.state_dict().items()
    )
    trainer = PersonSearchTrainer(make_cfg())
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == trainer.max_iter


def test_accumulation_steps_are_checked(make_cfg) -> None:
    cfg = make_cfg("out", "SOLVER.ACCUMULATION_STEPS", 0)
    with pytest.raises(ValueError, match="ACCUMULATION_STEPS is 0"):
        build_step_trainer(cfg, torch.nn.Linear(1, 1), [], None)


def test_loss_scale_of_mixed_precision(make_cfg, monkeypatch) -> None:
    """Builds the step only, since the machine may not have a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for opts, expected in (((), 2.0**16), (("SOLVER.AMP.INIT_SCALE", 2.0**13), 2.0**13)):
        cfg = make_cfg("out", "SOLVER.AMP.ENABLED", True, *opts)
        step = build_step_trainer(cfg, torch.nn.Linear(1, 1), [], None)
        assert step.grad_scaler.get_scale() == expected
    cfg = make_cfg("out", "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.INIT_SCALE", 0.0)
    with pytest.raises(ValueError, match="SOLVER.AMP.INIT_SCALE is 0.0; it must be within"):
        build_step_trainer(cfg, torch.nn.Linear(1, 1), [], None)


def test_initial_weights_hook_is_called_where_a_training_starts(make_cfg) -> None:
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
    """Half the processes: half the batch size, twice the iterations."""
    cfg = make_cfg("out", "SOLVER.REFERENCE_WORLD_SIZE", 2, "TEST.EVAL_PERIOD", 3)
    solver = PersonSearchTrainer(cfg).cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (1, 0.0015)
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (16, (12,), 4)


def test_a_training_of_no_iterations_is_refused(make_cfg) -> None:
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER is 0; .*at least 1.*--eval-only"):
        PersonSearchTrainer(make_cfg("out", "SOLVER.MAX_ITER", 0))


def test_warns_of_a_test_set_that_is_trained_on(make_cfg, dataset, tmp_path, caplog) -> None:
    PersonSearchTrainer(make_cfg())
    assert f"DATASETS.TRAIN and DATASETS.TEST both name {dataset}" in caplog.text
    caplog.clear()
    register_tiny_dataset("second_tiny", tmp_path / "second", 4)
    PersonSearchTrainer(make_cfg("out", "DATASETS.TEST", ("second_tiny",)))
    assert "both name" not in caplog.text


# ---- frozen random weights ----------------------------------------------------------------
FROZEN_MESSAGE = (
    "MODEL.WEIGHTS is empty, so the backbone starts from random weights, but "
    "MODEL.BACKBONE.FREEZE_AT 2 freezes {} of its parameters and 20 layers of MODEL.RESNETS.NORM "
    "FrozenBN normalize nothing. Set MODEL.WEIGHTS to pre-trained weights, e.g. "
    "detectron2://ImageNetPretrained/torchvision/R-50.pkl, or train from scratch with "
    "MODEL.BACKBONE.FREEZE_AT 0 and MODEL.RESNETS.NORM BN (SyncBN on several GPUs)."
)


@pytest.fixture
def resnet_cfg(make_cfg):
    """With a ResNet-18 as Detectron2's defaults have it, not frozen."""
    resnet_cfg = make_cfg().clone()
    resnet_cfg.defrost()
    resnet_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    resnet_cfg.MODEL.RESNETS.DEPTH, resnet_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    resnet_cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    return resnet_cfg


class WithBackbone(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def warnings(resnet_cfg, caplog, model=None) -> list[str]:
    caplog.clear()
    warn_of_frozen_random_weights(resnet_cfg, model or WithBackbone(build_backbone(resnet_cfg)))
    return [record.getMessage() for record in caplog.records]


def test_detectron2s_defaults_on_random_weights(resnet_cfg, caplog) -> None:
    # conv1 3 -> 64 (7 x 7), and two blocks of two convolutions 64 -> 64 (3 x 3)
    frozen = 3 * 64 * 49 + 4 * 64 * 64 * 9
    assert warnings(resnet_cfg, caplog) == [FROZEN_MESSAGE.format(f"{frozen:,}")]


@pytest.mark.parametrize(
    ("freeze_at", "norm", "said", "not_said"),
    [
        (0, "BN", None, None),
        (2, "BN", "FREEZE_AT 2 freezes", "MODEL.RESNETS.NORM"),
        (0, "FrozenBN", "20 layers of MODEL.RESNETS.NORM FrozenBN", "MODEL.BACKBONE.FREEZE_AT"),
    ],
)
def test_only_the_faults_are_named(resnet_cfg, caplog, freeze_at, norm, said, not_said) -> None:
    resnet_cfg.MODEL.BACKBONE.FREEZE_AT, resnet_cfg.MODEL.RESNETS.NORM = freeze_at, norm
    found = warnings(resnet_cfg, caplog)
    if said is None:
        assert found == []
    else:
        assert len(found) == 1 and said in found[0] and not_said not in found[0]


def test_no_warning_with_weights(resnet_cfg, caplog) -> None:
    resnet_cfg.MODEL.WEIGHTS = "some.pth"
    assert warnings(resnet_cfg, caplog) == []
    resnet_cfg.MODEL.WEIGHTS = ""
    resnet_cfg.MODEL.BACKBONE.FREEZE_AT = 0
    model = WithBackbone(build_backbone(resnet_cfg))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.3)  # from the model's own load_initial_weights()
    assert warnings(resnet_cfg, caplog, model) == []
    assert warnings(resnet_cfg, caplog, nn.Linear(1, 1)) == []  # no backbone


def test_the_trainer_warns_where_a_training_starts(resnet_cfg, caplog) -> None:
    resnet_cfg.SOLVER.MAX_ITER = 1
    trainer = PersonSearchTrainer(resnet_cfg)
    trainer.model.backbone = build_backbone(resnet_cfg)
    with caplog.at_level(logging.WARNING):
        trainer.resume_or_load(resume=False)
    assert "MODEL.BACKBONE.FREEZE_AT 2 freezes" in caplog.text
    trainer.checkpointer.save("model_0000000", iteration=0)
    caplog.clear()
    trainer.resume_or_load(resume=True)
    assert "FREEZE_AT" not in caplog.text


# ---- one pass over the images -------------------------------------------------------------
ONE_PASS, NUM_IMAGES = "tiny_for_one_pass", 4
TASKS = ["search", "search_all_gt", "search_all_cbgm", "search_all_gt_best_det_strict"]


@pytest.fixture
def one_pass_cfg(tmp_path: Path):
    register_tiny_dataset(ONE_PASS, tmp_path / "images", NUM_IMAGES)
    one_pass_cfg = tiny_cfg(tmp_path / "out", ONE_PASS)
    one_pass_cfg.MODEL.REID.NUM_PIDS = 3
    one_pass_cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.0
    yield one_pass_cfg
    unregister_dataset(ONE_PASS)


def test_every_section_from_one_forward_per_image(one_pass_cfg, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, calls = build_model(one_pass_cfg), []
    model.register_forward_pre_hook(lambda _, inputs: calls.extend(inputs[0]))
    plain = PersonSearchTrainer.test(one_pass_cfg, model)
    assert len(calls) == NUM_IMAGES
    assert [len(x["queries"]) for x in calls] == [1] * NUM_IMAGES
    calls.clear()
    keys = one_pass_cfg.TEST.PERSON_SEARCH
    keys.VARIANTS = ["gt", "cbgm", "gt+best_det+strict"]
    keys.DET_IOU_THRESHS, keys.DET_SCORE_THRESHS = [0.75], [0.6]
    keys.COCO_AP = keys.DUMP_PREDICTIONS = True
    results = PersonSearchTrainer.test(one_pass_cfg, model)
    assert len(calls) == NUM_IMAGES
    assert [len(x["queries"]) for x in calls] == [3] * NUM_IMAGES  # and two persons
    assert list(results) == [
        "detection",
        "detection_coco",
        "detection_iou75",
        "detection_score60",
        "detection_iou75_score60",
        *TASKS,
    ]
    # what was there before is as before: true boxes do not disturb the queries
    for task in plain:
        assert results[task] == pytest.approx(plain[task], abs=1e-4)
    assert results["search_all_gt"]["recall"] == 100
    assert results["search_all_gt"] == results["search_all_gt_best_det_strict"]
    # and all of it comes out of the file again
    judge = PersonSearchEvaluator(one_pass_cfg, ONE_PASS, tmp_path / "again")
    judge.load_predictions(tmp_path / "out" / "inference" / f"{ONE_PASS}_predictions.npz")
    again = judge.score()
    assert {task: again[task] for task in TASKS} == {task: results[task] for task in TASKS}


def test_a_mapper_without_ground_truth_boxes_is_reported(one_pass_cfg) -> None:
    model = build_model(one_pass_cfg)
    loader = PersonSearchTrainer.build_test_loader(
        one_pass_cfg, ONE_PASS
    )  # of the config without 'gt'
    judge = PersonSearchEvaluator(ONE_PASS, variants=["gt"], score_thresh=0.0)
    judge.reset()
    batch = next(iter(loader))
    with torch.no_grad():
        outputs = model.eval()(batch)
    with pytest.raises(
        ValueError, match=r"image_id 0: the loader returned.*2 ground truth boxes \(-1\)"
    ):
        judge.process(batch, outputs)
    del batch[0]["queries"]
    with pytest.raises(
        ValueError, match="1 query_feats for 1 queries .*2 ground truth boxes.*'gt'"
    ):
        judge.process(batch, outputs)
