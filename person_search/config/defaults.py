# SPDX-License-Identifier: Apache-2.0
"""Config keys that all methods share, with their units and defaults."""

from detectron2.config import CfgNode as CN


def add_person_search_config(cfg: CN) -> None:
    """Adds the keys of the shared core to a Detectron2 config, in place."""
    # ---- data sets ---------------------------------------------------------------------------
    # Your own data sets, for use in DATASETS.TRAIN and TEST: [name, JSON file] or [name, JSON file,
    # image root]. Paths are absolute or relative to $DETECTRON2_DATASETS (default: datasets);
    # without image root, file names are relative to the JSON. See docs/adding_a_dataset.md.
    cfg.DATASETS.PERSON_SEARCH_JSON = []

    # ---- input -------------------------------------------------------------------------------
    # Name in MAPPER_REGISTRY of the class that turns a data set record into model input.
    cfg.DATALOADER.MAPPER = "PersonSearchMapper"
    # An unreadable image: "raise" ends the run and names the file, "skip" logs it and continues.
    cfg.DATALOADER.ON_BAD_IMAGE = "raise"
    # Seconds that a training waits for a batch of its workers before it ends with a message: much
    # longer than a slow machine needs. 0 waits without a limit.
    cfg.DATALOADER.TIMEOUT = 3600

    # ---- re-ID -------------------------------------------------------------------------------
    cfg.MODEL.REID = CN()
    # Length of the re-ID embedding (D).
    cfg.MODEL.REID.EMBED_DIM = 256
    # Number of training identities. 0 takes it from the data set; any other value must equal it.
    cfg.MODEL.REID.NUM_PIDS = 0

    # ---- slim ResNet (build_slim_resnet_backbone, build_slim_resnet_fpn_backbone) --------------
    cfg.MODEL.SLIM_RESNET = CN()
    # Channels after the stem, then channels and basic blocks of each stage (strides 4, 8, ...).
    cfg.MODEL.SLIM_RESNET.STEM_WIDTH = 32
    cfg.MODEL.SLIM_RESNET.WIDTHS = [32, 64, 128, 192]
    cfg.MODEL.SLIM_RESNET.BLOCKS = [1, 1, 1, 1]
    # "BN", "SyncBN" or "GN". "FrozenBN" is refused, since the weights start at random.
    cfg.MODEL.SLIM_RESNET.NORM = "BN"

    # ---- Swin Transformer (build_swin_fpn_backbone); the defaults are Swin-Base ----------------
    cfg.MODEL.SWIN = CN()
    # Channels of the first stage (they double from stage to stage), blocks and heads per stage.
    cfg.MODEL.SWIN.EMBED_DIM = 128
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 18, 2]
    cfg.MODEL.SWIN.HEADS = [4, 8, 16, 32]
    # Side of an attention window, in tokens.
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Semantic weight of SOLIDER's pre-trained weights, 0 (appearance) to 1 (semantics), which is
    # folded into the patch merging when they are loaded. -1: without this control.
    cfg.MODEL.SWIN.SEMANTIC_WEIGHT = -1.0
    # Probability of skipping a branch of the last block in training; it grows linearly from 0.
    cfg.MODEL.SWIN.DROP_PATH = 0.3
    # -1: nothing is frozen; 0: the patch embedding; n > 1: also the first n - 1 stages.
    cfg.MODEL.SWIN.FROZEN_STAGES = -1
    # Recompute blocks in the backward pass: slower, with much less memory.
    cfg.MODEL.SWIN.ACTIVATION_CHECKPOINT = False

    # ---- image models of timm with an FPN (build_timm_fpn_backbone) -----------------------------
    cfg.MODEL.TIMM = CN()
    # Name of the model, for example "convnext_base" or "pvt_v2_b2".
    cfg.MODEL.TIMM.NAME = "resnet50"
    # Initial weights where MODEL.WEIGHTS is empty: "" random, "imagenet" downloaded by timm, or the
    # path of a state dict of timm, torchvision or the original authors.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Number of leading features (stages) that are not trained.
    cfg.MODEL.TIMM.FROZEN_STAGES = 0
    # Batch norms: "train", "frozen" (eval mode, not trained), or "sync" (over all processes). Group
    # and layer norms belong to the model, for example "resnet50_gn".
    cfg.MODEL.TIMM.NORM = "train"
    # Norm of each feature before the FPN, for example "LN" for transformers and ConvNeXt; "": none.
    cfg.MODEL.TIMM.OUT_NORM = ""
    # As in MODEL.SWIN.
    cfg.MODEL.TIMM.DROP_PATH = 0.0
    cfg.MODEL.TIMM.ACTIVATION_CHECKPOINT = False

    # ---- model card (docs/model_card.md) -------------------------------------------------------
    # License of the trained weights, for example "CC-BY-NC-4.0". Empty: not stated.
    cfg.MODEL.LICENSE = ""

    # ---- solver ------------------------------------------------------------------------------
    # "SGD" as in Detectron2, or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Mixed precision (SOLVER.AMP.ENABLED): "float16" with a loss scale, which needs a GPU, or
    # "bfloat16" with the range of float32, which needs no scale and also runs on CPUs.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Initial loss scale of float16. It is halved after each overflow.
    cfg.SOLVER.AMP.INIT_SCALE = 65536.0
    # Number of parts into which the images of a step are split to save memory; gradients add up.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Exponential moving average of the weights. It is evaluated, kept as the best model and written
    # as model_final_ema.pth; the training continues with the raw weights. Update n keeps
    # min(DECAY, (1 + n) / (10 + n)) of the average.
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.999
    # On Ctrl-C, SIGTERM or SIGHUP: write a checkpoint after the iteration. False: end at once.
    cfg.SOLVER.CHECKPOINT_ON_SIGNAL = True
    # Accept weights that fill only a part of the model where all of it is needed (--resume,
    # --eval-only). A training may always start from partial weights.
    cfg.MODEL.ALLOW_PARTIAL_LOAD = False

    # ---- experiment trackers -------------------------------------------------------------------
    # "wandb" (Weights & Biases) and "mlflow" get losses, metrics and drawn evaluations. They are
    # configured by their own environment variables, such as MLFLOW_TRACKING_URI.
    cfg.TRACKING = CN()
    cfg.TRACKING.SERVICES = []
    cfg.TRACKING.PROJECT = "person-search"
    # Name of the run. Empty: the name of the output folder.
    cfg.TRACKING.NAME = ""
    # Draws searches and detections of every n-th evaluation for the trackers and TensorBoard. 0:
    # never.
    cfg.TRACKING.IMAGES_EVERY = 1

    # ---- evaluation --------------------------------------------------------------------------
    # Precision of the backbone in evaluation and search: "float32", "bfloat16", "float16", "auto"
    # (the fastest of the device), or "eager" (float32 without any optimization). Embeddings of
    # "float32" equal those of "eager" up to rounding; see docs/deployment.md for the others.
    cfg.TEST.PRECISION = "float32"
    cfg.TEST.PERSON_SEARCH = CN()
    # Detections below this score are ignored by the detection and search metrics.
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.5
    # Minimum IoU of a detection with a ground truth box (detection AP and recall).
    cfg.TEST.PERSON_SEARCH.DET_IOU_THRESH = 0.5
    # Additional IoU and score thresholds of the detection metrics. Each further pair of them adds a
    # section: [0.75] and [0.8] add detection_iou75, detection_score80 and
    # detection_iou75_score80. Scores must not be below SCORE_THRESH.
    cfg.TEST.PERSON_SEARCH.DET_IOU_THRESHS = []
    cfg.TEST.PERSON_SEARCH.DET_SCORE_THRESHS = []
    # Add COCO's AP over ten IoU thresholds and for small, medium and large persons as
    # detection_coco (AP50 is always reported). Takes some seconds on the real data sets.
    cfg.TEST.PERSON_SEARCH.COCO_AP = False
    # k of the reported top-k accuracies.
    cfg.TEST.PERSON_SEARCH.TOPK = [1, 5, 10]
    # Protocols to score, all in one pass over the images; empty: the default of the data set.
    # CUHK-SYSU: g50, g100 (default), g500, g1000, g2000, g4000, occlusion, low_resolution.
    # PRW: all (default), multi_view. The first one is "search", others are search_<protocol>.
    cfg.TEST.PERSON_SEARCH.PROTOCOLS = []
    # The next seven keys apply to all sections without a suffix.
    # "cosine", or "cws": cosine times the score of the gallery detection.
    cfg.TEST.PERSON_SEARCH.SIMILARITY = "cosine"
    # "plain", or "cbgm": re-scored with the other persons of the query image.
    cfg.TEST.PERSON_SEARCH.MATCHING = "plain"
    # Box that the query is embedded from: "gt_box", or "best_det" (detection of highest IoU).
    cfg.TEST.PERSON_SEARCH.QUERY_SOURCE = "gt_box"
    # An image that a gallery lists twice: "seqnet" counts it twice as ground truth and scores it
    # once, "strict" uses each image once.
    cfg.TEST.PERSON_SEARCH.DUPLICATES = "seqnet"
    # Boxes that are searched: "det", the detections, or "gt", the ground truth boxes with score 1
    # (upper bound of re-ID), which the model embeds in the same pass.
    cfg.TEST.PERSON_SEARCH.GALLERY_BOXES = "det"
    # Minimum IoU of a ranked box with the person: "adaptive", at most SEARCH_IOU_THRESH and less
    # for small persons, or "fixed", always SEARCH_IOU_THRESH.
    cfg.TEST.PERSON_SEARCH.IOU_RULE = "adaptive"
    cfg.TEST.PERSON_SEARCH.SEARCH_IOU_THRESH = 0.5
    # Additional options to score in the same pass: values of the keys above, joined by "+".
    # ["cbgm", "cws+cbgm", "gt"] adds search_<protocol>_cbgm, search_<protocol>_cws_cbgm and
    # search_<protocol>_gt for every protocol.
    cfg.TEST.PERSON_SEARCH.VARIANTS = []
    # Context bipartite graph matching: the images of the K1 best detections are re-matched with K2
    # persons of the query image, the query included. 0 uses the usual values of the data set (10
    # and 3 for CUHK-SYSU, 30 and 4 for PRW). MODE "max": the new similarity is the largest of the
    # matched pairs; "mean": the mean of that and the old one.
    cfg.TEST.PERSON_SEARCH.CBGM = CN()
    cfg.TEST.PERSON_SEARCH.CBGM.K1 = 0
    cfg.TEST.PERSON_SEARCH.CBGM.K2 = 0
    cfg.TEST.PERSON_SEARCH.CBGM.MODE = "max"
    # Write all detections and embeddings of an evaluation into its output folder (.npz), so that
    # tools/evaluate_predictions.py can score other protocols without the model. 40 to 170 MB on the
    # real data sets.
    cfg.TEST.PERSON_SEARCH.DUMP_PREDICTIONS = False


def embeds_gt_boxes(cfg: CN) -> bool:
    """Returns whether an evaluation needs embeddings of the ground truth boxes."""
    keys = cfg.TEST.PERSON_SEARCH
    variants = [variant.split("+") for variant in keys.VARIANTS]
    return keys.GALLERY_BOXES == "gt" or any("gt" in values for values in variants)
