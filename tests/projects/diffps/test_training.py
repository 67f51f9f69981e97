# SPDX-License-Identifier: Apache-2.0
"""DiffPS in the shared trainer: resuming, several processes, learning, and the recipe."""

import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import pairwise_iou
from detectron2.utils.events import EventStorage
from diffps_model_tiny import run_cfg, tiny_cfg, train_in_two_processes, training_input
from tiny_model import register_tiny_dataset, unregister_dataset
from tiny_runs import compare_interrupted
from two_processes import run_in_two_processes

from diffps import add_diffps_config
from person_search.config import add_person_search_config
from person_search.engine import PersonSearchTrainer, build_optimizer

DATASET = "tiny_for_diffps_tests"


@pytest.fixture
def dataset(tmp_path):
    loggers = [logging.getLogger(n) for n in ("detectron2", "fvcore", "person_search", "diffps")]
    before = [(list(x.handlers), x.propagate, x.level) for x in loggers]
    register_tiny_dataset(DATASET, tmp_path / "images")
    yield DATASET
    unregister_dataset(DATASET)
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.parametrize(
    "opts", [(), ("SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.EMA.ENABLED", True)], ids=["plain", "ema"]
)
def test_resumed_equals_uninterrupted(tiny_sd, dataset, tmp_path, opts):
    """Weights, optimizer, look-up table and queue, bit for bit; also with random latents.

    And where a step is made in two parts, and an average of the weights is kept.
    """
    cfgs = []
    for run in ("whole", "broken"):
        random = {"DIFFPS__BACKBONE__NOISE": "random", "DIFFPS__BACKBONE__VAE_SAMPLE": True}
        cfgs.append(run_cfg(tiny_sd, dataset, tmp_path / run, **random))
        cfgs[-1].merge_from_list(list(opts))
        cfgs[-1].freeze()
    losses = compare_interrupted(*cfgs)
    assert len(set(losses.values())) == 8

    saved = torch.load(tmp_path / "whole" / "model_final.pth", weights_only=True)["model"]
    assert saved["roi_heads.reid_head.oim.lut"].norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    assert not [name for name in saved if name.startswith("backbone")]


def test_an_evaluation_passes_every_image_once(tiny_sd, dataset, tmp_path):
    """Initial weights of a training are not required."""
    cfg = run_cfg(tiny_sd, dataset, tmp_path, DIFFPS__HEAD__RES5_WEIGHTS="nowhere.pth")
    cfg.MODEL.REID.NUM_PIDS = 3
    model = build_model(cfg)
    passed = []
    model.backbone.register_forward_hook(lambda m, args, out: passed.append(len(args[0])))
    results = PersonSearchTrainer.test(cfg, model)
    assert set(results) == {"detection", "search"}
    assert sum(passed) == len(DatasetCatalog.get(dataset)) and len(results["search"]) > 3
    with pytest.raises(FileNotFoundError, match="MODEL.DIFFPS.HEAD.RES5_WEIGHTS.*nowhere.pth"):
        PersonSearchTrainer(cfg).resume_or_load(resume=False)


@pytest.mark.slow
def test_two_processes_stay_together(tiny_sd, tmp_path):
    """One of them has no identities; weights and OIM memory stay equal."""
    arguments = (tiny_sd, str(tmp_path / "data"), str(tmp_path))
    run_in_two_processes(train_in_two_processes, *arguments)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for name, value in first.items():
        # batch norms count their own images, as everywhere without SyncBN
        if not name.rpartition(".")[2].startswith("running_"):
            assert torch.equal(value, second[name]), name
    assert first["module.roi_heads.reid_head.oim.lut"].any()
    assert first["module.roi_heads.reid_head.oim.cq"].any()


@pytest.mark.slow
def test_overfits_two_images(tiny_sd):
    cfg = tiny_cfg(tiny_sd, ROI_HEADS__SCORE_THRESH_TEST=0.5, ROI_HEADS__NMS_THRESH_TEST=0.4)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY = 0.003, "AdamW", 0.0
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    inputs = [training_input(2, seed=0, pids=(0, 1)), training_input(1, seed=1, pids=(2,))]
    history = []
    with EventStorage():
        for _ in range(60):
            losses = model.train()(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({k: v.item() for k, v in losses.items()})
    for name in ("loss_rpn_cls", "loss_cls", "loss_oim"):
        assert history[-1][name] < 0.5 * history[0][name], name

    outputs = model.eval()(inputs)
    for item, output in zip(inputs, outputs, strict=True):
        found, truth = output["instances"], item["instances"]
        iou = pairwise_iou(truth.gt_boxes, found.pred_boxes)
        assert (iou.amax(dim=1) > 0.5).all()
        # the embedding of a detection is nearest to its own row of the table
        nearest = found.reid_feats[iou.argmax(dim=1)] @ model.roi_heads.reid_head.oim.lut.t()
        assert nearest.argmax(dim=1).tolist() == truth.gt_pids.tolist()


def test_learning_rate_curve_in_epochs_of_ten_iterations(repo_root):
    """Warm-up over one epoch from a thousandth, a tenth from epochs 2 and 3 on."""
    cfg = release_cfg(repo_root, "prw")
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 40, 10, (20, 30)
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    warmup = [1e-4 * (0.001 + 0.999 * i / 10) for i in range(10)]
    expected = warmup + [1e-4] * 10 + [1e-5] * 10 + [1e-6] * 10
    assert rates == pytest.approx(expected, rel=1e-6)


def release_cfg(repo_root: Path, data: str) -> CfgNode:
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_diffps_config(cfg)
    cfg.merge_from_file(
        str(repo_root / "configs" / "DiffPS" / "release" / f"diffps_sd21_{data}.yaml")
    )
    return cfg


@pytest.mark.parametrize(
    ("data", "images", "queue", "init"),
    [("prw", 5704, 500, "v2"), ("cuhk_sysu", 11206, 5000, "v1")],
)
def test_recipe_of_the_release(data, images, queue, init, repo_root):
    cfg = release_cfg(repo_root, data)
    epoch = images // cfg.SOLVER.IMS_PER_BATCH  # the last, smaller batch is dropped
    assert epoch == {"prw": 1901, "cuhk_sysu": 3735}[data]
    assert cfg.SOLVER.MAX_ITER == 30 * epoch
    assert tuple(cfg.SOLVER.STEPS) == (8 * epoch, 14 * epoch)
    assert cfg.SOLVER.WARMUP_ITERS == cfg.SOLVER.CHECKPOINT_PERIOD == epoch
    assert cfg.TEST.EVAL_PERIOD == 5 * epoch
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 10.0 and cfg.SOLVER.WEIGHT_DECAY == 0.0
    assert math.isclose(cfg.SOLVER.BASE_LR, 1e-4) and cfg.SOLVER.AMP.ENABLED
    diffps = cfg.MODEL.DIFFPS
    assert (diffps.OIM.QUEUE_SIZE, diffps.HEAD.INIT) == (queue, init)
    assert (diffps.OIM.MOMENTUM, diffps.OIM.SCALE, diffps.OIM.LOSS_WEIGHT) == (0.5, 30.0, 2.0)
    assert diffps.INPUT.RESIZE == "fixed" and list(diffps.INPUT.SIZE) == [1280, 1280]
    assert (diffps.SFAN.NORM, diffps.SFAN.ALPHA_INIT, diffps.DGRPN.MASK_EMPTY_PEAKS) == (
        "part", 0.0, False)  # fmt: skip
