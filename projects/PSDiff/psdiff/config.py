# SPDX-License-Identifier: Apache-2.0
"""Every config key of PSDiff, with its meaning, its unit and its place in the paper."""

from detectron2.config import CfgNode as CN


def add_psdiff_config(cfg: CN) -> None:
    """Adds ``MODEL.PSDIFF`` to a config that has the keys of the shared core already, in place."""
    cfg.MODEL.PSDIFF = CN()
    psdiff = cfg.MODEL.PSDIFF

    # ---- signals and noise (Section IV-A) ------------------------------------------------------
    # Proposals per image (N), in training and in testing.
    psdiff.NUM_PROPOSALS = 300
    # Signal scale of boxes (s1) and of embeddings (s2), Eq. 10.
    psdiff.SNR_BOX = 2.0
    psdiff.SNR_REID = 3.0
    # Length given to a teacher embedding before it is scaled by s2:
    # "l2" one, as the paper can be read; "rms" sqrt(D), so that an entry has variance one.
    psdiff.EMBED_NORM = "l2"
    # How an image's ground truths are padded to N: "repeat" them, "noise": random boxes and
    # embeddings, "mix": repeat up to half of N, then noise.
    psdiff.PAD = "repeat"

    # ---- Collaborative Denoising Layer (Section IV-B) -----------------------------------------
    psdiff.CDL = CN()
    # Features read by RoI pooling and the side length of the pooled window.
    psdiff.CDL.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    psdiff.CDL.POOLER_RESOLUTION = 7
    psdiff.CDL.POOLER_SAMPLING_RATIO = 2
    # Side (pixels) of a box that is pooled from level CANONICAL_LEVEL; FPN paper, Eq. 1.
    psdiff.CDL.CANONICAL_BOX_SIZE = 224
    psdiff.CDL.CANONICAL_LEVEL = 4
    # Switches of Table IV (b): self-attention, dynamic convolution, cross-attention.
    psdiff.CDL.SA = True
    psdiff.CDL.DC = True
    psdiff.CDL.CA = True
    # Self-attention over the "proposals" of an image or over the "cells" of each RoI.
    psdiff.CDL.SA_OVER = "proposals"
    psdiff.CDL.HEADS = 8
    # What the layer gets to see of a noisy embedding: "plain", divided by s2, or "wiener": also
    # weighted by the share of it that is signal at time t, so that pure noise is not looked at.
    psdiff.CDL.TOKEN_SCALE = "plain"
    # Channels between and after the two dynamic kernels.
    psdiff.CDL.DC_DIM = 16
    psdiff.CDL.DC_OUT = 16
    # Table IV (c): "cascaded" (detection reads the predicted embedding), "parallel" (both read the
    # collaborative feature) or "skip" (cascaded, and detection also reads its own feature).
    psdiff.CDL.PREDICTION = "skip"
    # Hidden layers of the class and of the box branch.
    psdiff.CDL.NUM_CLS = 1
    psdiff.CDL.NUM_REG = 3
    # Where the layer's embedding comes from: "diffusion", the noisy embedding, or "imitation", one
    # learnt vector for all: embeddings then imitate the teacher without denoising (Table VI, left).
    psdiff.CDL.REID_INPUT = "diffusion"

    # ---- training (Algorithm 1, Eq. 13 and 14) -------------------------------------------------
    # Times and noises drawn per image in one iteration. All use the same image features, so more
    # than the paper's one draw costs little where the backbone is the expensive part.
    psdiff.TRAIN_DRAWS = 1
    # "dynamic_k" or "hungarian".
    psdiff.MATCHER = "dynamic_k"
    # Number of highest IoUs that set how many proposals a ground truth gets (dynamic_k).
    psdiff.MATCHER_TOP_IOUS = 5
    psdiff.LOSS = CN()
    psdiff.LOSS.CLS = 2.0
    psdiff.LOSS.L1 = 5.0
    psdiff.LOSS.GIOU = 2.0
    psdiff.LOSS.REID = 5.0
    psdiff.LOSS.FOCAL_ALPHA = 0.25
    psdiff.LOSS.FOCAL_GAMMA = 2.0

    # ---- inference (Algorithm 2) ---------------------------------------------------------------
    # Denoising steps; can be changed at run time without training again.
    psdiff.STEPS = 8
    # Milliseconds that the detection of one image may take on this machine: the greatest number of
    # steps that keeps within is used, at most STEPS. 0: always STEPS.
    psdiff.LATENCY_BUDGET_MS = 0.0
    # "ddim", "dpmsolver" or "dpmsolver++", and the order of the latter two.
    psdiff.SAMPLER = "ddim"
    psdiff.SOLVER_ORDER = 2
    # Share of fresh noise in a DDIM step: 0 is deterministic, 1 is DDPM-like.
    psdiff.ETA = 0.0
    # Detections of one image: lowest score, IoU above which NMS drops a box, greatest number.
    psdiff.SCORE_THRESH = 0.05
    psdiff.NMS_THRESH = 0.5
    # Whether the predictions of all steps, not only of the last, go into the NMS.
    psdiff.ENSEMBLE = False
    # Whether proposals that score less than RENEWAL_THRESH after a step are drawn anew, box and
    # embedding (the box renewal of DiffusionDet).
    psdiff.RENEWAL = False
    psdiff.RENEWAL_THRESH = 0.5
    # Whether a detection gets its embedding like a query, by denoising it once more with the final
    # box held fixed. False: the embedding of the last step, as in the paper.
    psdiff.EMBED_DETECTIONS = False
    # Noise draws over which the embedding of a given (query) box is averaged.
    psdiff.QUERY_DRAWS = 1
    # Seed of the noise; each image draws from (SEED, image_id), whatever the batch around it.
    psdiff.SEED = 0

    # ---- teacher (Section V-D) -----------------------------------------------------------------
    psdiff.TEACHER = CN()
    # safetensors file with the teacher's embedding (e_0) of every training box,
    # written by projects/PSDiff/compute_embeddings.py.
    psdiff.TEACHER.EMBEDDINGS = ""
    # Method of the teacher: "hhcl", "s_reid", "mgn", "agw" or "pplr" (Table VI).
    psdiff.TEACHER.NAME = "hhcl"
    # Its network: crop height and width in pixels, and its training.
    psdiff.TEACHER.CROP_SIZE = [256, 128]
    psdiff.TEACHER.BACKBONE = "build_slim_resnet_backbone"
    psdiff.TEACHER.WEIGHTS = ""
    psdiff.TEACHER.TEMPERATURE = 0.05
    psdiff.TEACHER.MOMENTUM = 0.2
    # Slots of the queue of unlabelled persons, extra negatives of the softmax.
    psdiff.TEACHER.QUEUE_SIZE = 512
    # Identities per batch (P) and crops per identity (K).
    psdiff.TEACHER.IDS_PER_BATCH = 16
    psdiff.TEACHER.CROPS_PER_ID = 4
    psdiff.TEACHER.BASE_LR = 3.5e-4
    psdiff.TEACHER.MAX_ITER = 10000
    psdiff.TEACHER.WEIGHT_DECAY = 5e-4
