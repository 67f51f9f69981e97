# SPDX-License-Identifier: Apache-2.0
"""Every config key that both methods share, with its unit and its default."""

from detectron2.config import CfgNode as CN


def add_person_search_config(cfg: CN) -> None:
    """Adds the keys of the shared core to a Detectron2 config, in place."""
    # ---- data sets ---------------------------------------------------------------------------
    # Your own data sets, to be named in DATASETS.TRAIN and TEST: [name, JSON file] or [name, JSON
    # file, image root]. Paths are absolute or relative to $DETECTRON2_DATASETS (default: datasets);
    # without image root, file names are relative to the JSON. See docs/adding_a_dataset.md.
    cfg.DATASETS.PERSON_SEARCH_JSON = []

    # ---- input -------------------------------------------------------------------------------
    # Name in MAPPER_REGISTRY of the class that turns a data set record into model input.
    cfg.DATALOADER.MAPPER = "PersonSearchMapper"
    # An image that cannot be read: "raise" ends the run and names it, "skip" logs it and goes on.
    cfg.DATALOADER.ON_BAD_IMAGE = "raise"

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
    # "BN", "SyncBN" or "GN"; it starts from random weights, so "FrozenBN" is refused.
    cfg.MODEL.SLIM_RESNET.NORM = "BN"

    # ---- Swin Transformer (build_swin_fpn_backbone); the defaults are Swin-Base ----------------
    cfg.MODEL.SWIN = CN()
    # Channels of the first stage (they double from stage to stage), blocks and heads per stage.
    cfg.MODEL.SWIN.EMBED_DIM = 128
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 18, 2]
    cfg.MODEL.SWIN.HEADS = [4, 8, 16, 32]
    # Side of an attention window, in tokens.
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Probability that training skips a branch of the last block; it grows linearly from 0.
    cfg.MODEL.SWIN.DROP_PATH = 0.3
    # -1: everything is trained; 0: not the patch embedding; n > 1: nor the first n - 1 stages.
    cfg.MODEL.SWIN.FROZEN_STAGES = -1
    # Compute blocks again in the backward pass: slower, with far less memory.
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
    # Batch norms: "train", or "frozen" (eval mode, not trained).
    cfg.MODEL.TIMM.NORM = "train"

    # ---- solver ------------------------------------------------------------------------------
    # "SGD" as Detectron2 has it, or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Mixed precision: the loss scale that a training starts from. It halves after every overflow.
    cfg.SOLVER.AMP.INIT_SCALE = 65536.0
    # Split the images of one step into so many parts and sum their gradients (saves memory).
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Keep an exponential moving average of the weights. It is what is evaluated, kept as the best
    # model and written as model_final_ema.pth; the training goes on with the raw weights. Update n
    # keeps min(DECAY, (1 + n) / (10 + n)) of the average.
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.999
    # On Ctrl-C or SIGTERM: finish the iteration, write a checkpoint, then end. False: just end.
    cfg.SOLVER.CHECKPOINT_ON_SIGNAL = True
    # Accept weights that fill only a part of the model where the whole is expected (--resume,
    # --eval-only). Weights that a training starts from may always be partial.
    cfg.MODEL.ALLOW_PARTIAL_LOAD = False

    # ---- evaluation --------------------------------------------------------------------------
    cfg.TEST.PERSON_SEARCH = CN()
    # Detections below this score take no part in detection or search figures.
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.5
    # IoU from which a detection can count as the ground truth box (detection AP and recall).
    cfg.TEST.PERSON_SEARCH.DET_IOU_THRESH = 0.5
    # Further IoU and score thresholds for the detection figures. Every other pair of an IoU and a
    # score gives a section: [0.75] and [0.8] detection_iou75, detection_score80 and
    # detection_iou75_score80. Scores must not be below SCORE_THRESH.
    cfg.TEST.PERSON_SEARCH.DET_IOU_THRESHS = []
    cfg.TEST.PERSON_SEARCH.DET_SCORE_THRESHS = []
    # Also give COCO's AP over ten IoU thresholds and for small, medium and large people, as
    # detection_coco (AP50 is always there). Some seconds on the real sets.
    cfg.TEST.PERSON_SEARCH.COCO_AP = False
    # k of the reported top-k accuracies.
    cfg.TEST.PERSON_SEARCH.TOPK = [1, 5, 10]
    # Protocols to score, all from one pass over the images; empty: the data set's own default.
    # CUHK-SYSU: g50, g100 (default), g500, g1000, g2000, g4000, occlusion, low_resolution.
    # PRW: all (default), multi_view. The first one is "search", others are search_<protocol>.
    cfg.TEST.PERSON_SEARCH.PROTOCOLS = []
    # The next seven keys apply to all sections without a suffix.
    # "cosine", or "cws": cosine times the score of the gallery detection.
    cfg.TEST.PERSON_SEARCH.SIMILARITY = "cosine"
    # "plain", or "cbgm": re-scored with the other people of the query image.
    cfg.TEST.PERSON_SEARCH.MATCHING = "plain"
    # Where the query's embedding comes from: "gt_box", or "best_det" (detection of highest IoU).
    cfg.TEST.PERSON_SEARCH.QUERY_SOURCE = "gt_box"
    # An image listed twice in a gallery: "seqnet" counts it twice as ground truth and scores it
    # once, "strict" takes every image once.
    cfg.TEST.PERSON_SEARCH.DUPLICATES = "seqnet"
    # What is searched: "det", the detections, or "gt", the true boxes with score 1 (upper bound of
    # re-ID). The model embeds the true boxes in the same pass.
    cfg.TEST.PERSON_SEARCH.GALLERY_BOXES = "det"
    # IoU from which a box of the ranked list can be the person: "adaptive", at most
    # SEARCH_IOU_THRESH and less for small people, or "fixed", SEARCH_IOU_THRESH for everybody.
    cfg.TEST.PERSON_SEARCH.IOU_RULE = "adaptive"
    cfg.TEST.PERSON_SEARCH.SEARCH_IOU_THRESH = 0.5
    # Further options to score from the same pass: words that the keys above take, joined by "+".
    # ["cbgm", "cws+cbgm", "gt"] adds search_<protocol>_cbgm, search_<protocol>_cws_cbgm and
    # search_<protocol>_gt for every protocol.
    cfg.TEST.PERSON_SEARCH.VARIANTS = []
    # Context bipartite graph matching: the images of the K1 best detections are matched again, with
    # K2 people of the query image, the query included. 0 takes the usual values of the data set
    # (10 and 3 for CUHK-SYSU, 30 and 4 for PRW). MODE "max": the new similarity is the largest of
    # the matched pairs; "mean": the mean of that and the old one.
    cfg.TEST.PERSON_SEARCH.CBGM = CN()
    cfg.TEST.PERSON_SEARCH.CBGM.K1 = 0
    cfg.TEST.PERSON_SEARCH.CBGM.K2 = 0
    cfg.TEST.PERSON_SEARCH.CBGM.MODE = "max"
    # Also write all detections and embeddings of an evaluation into its output folder (.npz), so
    # that other protocols can be scored later without the model, by tools/evaluate_predictions.py.
    # 40 to 170 MB on the real sets.
    cfg.TEST.PERSON_SEARCH.DUMP_PREDICTIONS = False


def embeds_gt_boxes(cfg: CN) -> bool:
    """Whether the evaluation asks for embeddings of the true boxes of the test images."""
    keys = cfg.TEST.PERSON_SEARCH
    variants = [variant.split("+") for variant in keys.VARIANTS]
    return keys.GALLERY_BOXES == "gt" or any("gt" in values for values in variants)
