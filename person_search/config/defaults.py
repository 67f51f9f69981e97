# SPDX-License-Identifier: Apache-2.0
"""Every config key that both methods share, with its unit and its default."""

from detectron2.config import CfgNode as CN


def add_person_search_config(cfg: CN) -> None:
    """Adds the keys of the shared core to a Detectron2 config, in place."""
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
    # k of the reported top-k accuracies.
    cfg.TEST.PERSON_SEARCH.TOPK = [1, 5, 10]
    # Protocols to score, e.g. ["g100"] or ["all"]; empty: the data set's own default.
    cfg.TEST.PERSON_SEARCH.PROTOCOLS = []
    # "cosine", or "cws": cosine times the score of the gallery detection.
    cfg.TEST.PERSON_SEARCH.SIMILARITY = "cosine"
    # An image listed twice in a gallery: "seqnet" counts it twice as ground truth and scores it
    # once, "strict" takes every image once.
    cfg.TEST.PERSON_SEARCH.DUPLICATES = "seqnet"
    # Where the query's embedding comes from: "gt_box", or "best_det" (detection of highest IoU).
    cfg.TEST.PERSON_SEARCH.QUERY_SOURCE = "gt_box"
    # Also write all detections and embeddings of an evaluation into its output folder (.npz), so
    # that other protocols can be scored later without the model. 40 to 170 MB on the real sets.
    cfg.TEST.PERSON_SEARCH.DUMP_PREDICTIONS = False
