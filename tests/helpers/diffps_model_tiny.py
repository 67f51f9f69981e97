# SPDX-License-Identifier: Apache-2.0
"""A whole DiffPS on the tiny Stable Diffusion folder, and inputs for it."""

from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from diffps_tiny import tiny_backbone_cfg
from tiny_model import register_tiny_dataset

from person_search.engine import PersonSearchTrainer
from person_search.schema import UNLABELED_PID

EMBED_DIM, NUM_PIDS = 24, 5
IMAGE_SIZE = (64, 128)


def tiny_cfg(folder, **overrides):
    """Config of the tiny model; keywords are keys of MODEL, with ``__`` for a dot."""
    cfg = tiny_backbone_cfg(folder)
    model = cfg.MODEL
    model.META_ARCHITECTURE = "DiffPS"
    model.PROPOSAL_GENERATOR.NAME = "DGRPN"
    model.ANCHOR_GENERATOR.NAME = "RoundedAnchorGenerator"
    model.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    model.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0, 2.0]]
    model.ANCHOR_GENERATOR.OFFSET = 0.0
    model.RPN.IN_FEATURES = ["guided"]
    model.RPN.POST_NMS_TOPK_TRAIN = 30
    model.RPN.POST_NMS_TOPK_TEST = 12
    model.ROI_HEADS.NAME = "DiffPSROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["guided"]
    model.ROI_HEADS.NUM_CLASSES = 1
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model.ROI_HEADS.POSITIVE_FRACTION = 0.5
    model.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model.ROI_BOX_HEAD.NAME = "Res5BoxHead"
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    model.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 1
    model.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlign"
    model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    model.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    model.REID.EMBED_DIM = EMBED_DIM
    model.REID.NUM_PIDS = NUM_PIDS
    model.DIFFPS.DET_AGG.DIM = 16
    model.DIFFPS.MSFRN.DIM = 32  # as wide as the text vectors
    model.DIFFPS.HEAD.RES5_WIDTH = 12
    model.DIFFPS.REID.POOL = [6, 3]
    model.DIFFPS.REID.BATCH_SIZE_PER_IMAGE = 16
    model.DIFFPS.OIM.QUEUE_SIZE = 6
    for key, value in overrides.items():
        node = model
        *path, last = key.split("__")
        for name in path:
            node = node[name]
        assert last in node, key
        node[last] = value
    return cfg


def tiny_model(folder, seed=0, **overrides):
    torch.manual_seed(seed)
    return build_model(tiny_cfg(folder, **overrides))


def training_input(persons=2, seed=0, pids=(0, UNLABELED_PID)):
    """Output of the mapper in training, with 0 to 2 persons."""
    h, w = IMAGE_SIZE
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 60.0], [70.0, 10.0, 96.0, 56.0]])[:persons]
    return {
        "image": torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8),
        "instances": Instances(
            (h, w),
            gt_boxes=Boxes(boxes.view(-1, 4)),
            gt_classes=torch.zeros(persons, dtype=torch.int64),
            gt_pids=torch.tensor(pids[:persons], dtype=torch.int64),
        ),
    }


def run_cfg(folder, dataset, output_dir, **overrides):
    """Config of a short training of the tiny model on a registered dataset."""
    cfg = tiny_cfg(folder, **overrides)
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.DATALOADER.MAPPER = "DiffPSMapper"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.MODEL.REID.NUM_PIDS = 0
    cfg.MODEL.DIFFPS.INPUT.SIZE = list(IMAGE_SIZE)
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.BASE_LR = 0.003
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.STEPS = (6,)
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 4
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.0
    cfg.SEED = 1
    cfg.OUTPUT_DIR = str(output_dir)
    return cfg


def train_in_two_processes(folder, data, output_dir):
    """One of two processes: a short training; writes its weights to ``output_dir``.

    The first process never sees a labelled person, so that one without any loss of re-ID meets one
    that has some.
    """
    name = "diffps_of_processes"
    records = register_tiny_dataset(name, Path(f"{data}{comm.get_rank()}"))
    MetadataCatalog.get(name).num_pids = 3
    if comm.get_rank() == 0:
        for annotation in (a for record in records for a in record["annotations"]):
            annotation["person_id"] = UNLABELED_PID
    cfg = run_cfg(folder, name, output_dir)
    cfg.SOLVER.MAX_ITER = 2
    cfg.DATASETS.TEST = ()
    seed_all_rng(1)  # the same weights in both
    trainer = PersonSearchTrainer(cfg)
    trainer.train()
    torch.save(trainer.model.state_dict(), f"{output_dir}/rank{comm.get_rank()}.pt")
