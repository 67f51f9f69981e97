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
    # Channels between and after the two dynamic kernels. Larger ones exceed Table II's 31 M.
    psdiff.CDL.DC_DIM = 12
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
    # Weight of the distance of embeddings in the matching cost. The other weights are those of the
    # losses. "The matching cost is defined as" Eq. 13, taken literally, makes this LOSS.REID: 5.
    psdiff.MATCHER_REID = 0.0
    psdiff.LOSS = CN()
    psdiff.LOSS.CLS = 2.0
    psdiff.LOSS.L1 = 5.0
    psdiff.LOSS.GIOU = 2.0
    psdiff.LOSS.REID = 5.0
    psdiff.LOSS.FOCAL_ALPHA = 0.25
    psdiff.LOSS.FOCAL_GAMMA = 2.0

    # ---- inference (Algorithm 2) ---------------------------------------------------------------
    # Denoising steps, 1 to 1000; can be changed at run time without training again, as can all of
    # this section: model.set_inference(steps=4), or for one call model.inference(..., steps=4).
    psdiff.STEPS = 8
    # Milliseconds that the detection of one image may take on this machine: the greatest number of
    # steps that keeps within is used, at least 1 and at most STEPS. It is measured at the first
    # inference, for the largest image that INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST make, and is the
    # same for all images and processes. 0: always STEPS.
    psdiff.LATENCY_BUDGET_MS = 0.0
    # "ddim", "dpmsolver" or "dpmsolver++" (Table V), and the order of the latter two, 1 to 3.
    psdiff.SAMPLER = "ddim"
    psdiff.SOLVER_ORDER = 2
    # Share of fresh noise in a DDIM step: 0 is deterministic, 1 is DDPM-like. The others have none.
    psdiff.ETA = 0.0
    # Detections of one image: lowest score, IoU above which NMS drops a box, greatest number.
    psdiff.SCORE_THRESH = 0.05
    psdiff.NMS_THRESH = 0.5
    # Whether the predictions of all steps, not only of the last, go into the NMS.
    psdiff.ENSEMBLE = False
    # Whether proposals that score less than RENEWAL_THRESH after a step other than the last are
    # drawn anew, box and embedding (the box renewal of DiffusionDet).
    psdiff.RENEWAL = False
    psdiff.RENEWAL_THRESH = 0.5
    # Whether a detection gets its embedding like a query, by denoising it once more with the final
    # box held fixed. False: the embedding of the last step, as in the paper.
    psdiff.EMBED_DETECTIONS = False
    # Noise draws over which the embedding of a given (query) box is averaged.
    psdiff.QUERY_DRAWS = 1
    # Denoising steps for the embedding of a given (query) box. 0: as many as STEPS.
    psdiff.QUERY_STEPS = 0
    # Factor on the noisy embedding that each step receives, 0 to 1. 1: as in the paper. 0: every
    # step embeds from the image alone, and only the boxes are refined.
    psdiff.REID_FEEDBACK = 1.0
    # Seed of the noise; each image draws from (SEED, image_id), whatever the batch around it.
    psdiff.SEED = 0

    _add_teacher_config(psdiff)


def _add_teacher_config(psdiff: CN) -> None:
    """Adds ``TEACHER``: the re-ID teachers of Section V-D and Table VI and their training.

    The defaults are the recipe of the HHCL teacher; configs/PSDiff/teachers/ has the others.
    """
    psdiff.TEACHER = CN()
    teacher = psdiff.TEACHER
    # safetensors file with the teacher's embedding (e_0) of every training box,
    # written by projects/PSDiff/tools/compute_embeddings.py.
    teacher.EMBEDDINGS = ""
    # Method: "hhcl", "s_reid", "mgn", "agw" or "pplr" (Table VI).
    teacher.NAME = "hhcl"
    # Weights of the whole teacher, written by train_teacher.py: to embed with, or to start from.
    teacher.WEIGHTS = ""

    # ---- network
    # Crop height and width in pixels.
    teacher.CROP_SIZE = [256, 128]
    # "torchvision/<a ResNet>", "timm/<any model>", or a name in Detectron2's BACKBONE_REGISTRY.
    teacher.BACKBONE = "torchvision/resnet50"
    # Where its weights start: "" random, "imagenet" downloaded by torchvision or timm, or the path
    # of a state dict (.pth or .safetensors) of that backbone.
    teacher.BACKBONE_WEIGHTS = ""
    # Stride of the last stage: 1 doubles the height and the width of the feature map; 2 for none of
    # that. MGN has both by design and does not look here.
    teacher.LAST_STRIDE = 1
    # Length of each reduced feature (mgn), stripes of a person (pplr), and non-local blocks at the
    # end of each stage (agw).
    teacher.PART_DIM = 256
    teacher.NUM_PARTS = 3
    teacher.NON_LOCAL = [0, 2, 3, 0]

    # ---- training data
    # Identities per batch (P) and crops per identity (K).
    teacher.IDS_PER_BATCH = 16
    teacher.CROPS_PER_ID = 4
    # All crops are held in memory: "raw" (55,000 of 256 x 128 pixels: 5.4 GB) or "jpeg", about
    # a fifth of it, decoded when a crop is taken.
    teacher.CROPS_IN_MEMORY = "raw"
    # Besides flipping and shifting: greatest relative change of brightness and of contrast, and
    # probability, smallest and greatest share of the area of random erasing.
    teacher.COLOR_JITTER = [0.0, 0.0]
    teacher.RANDOM_ERASING = [0.5, 0.02, 0.4]

    # ---- training
    # "Adam" or "SGD" (momentum 0.9).
    teacher.OPTIMIZER = "Adam"
    teacher.BASE_LR = 3.5e-4
    teacher.WEIGHT_DECAY = 5e-4
    # Length. An epoch is as many batches as labelled crops fill. MAX_ITER > 0 counts instead.
    teacher.EPOCHS = 50
    teacher.MAX_ITER = 0
    # "step": times GAMMA at each of STEP_EPOCHS; "cosine": along half a cosine down to zero.
    teacher.SCHEDULE = "step"
    teacher.STEP_EPOCHS = [20, 40]
    teacher.GAMMA = 0.1
    # Linear warm-up from WARMUP_FACTOR times the learning rate.
    teacher.WARMUP_EPOCHS = 0
    teacher.WARMUP_FACTOR = 0.1
    # Epochs between checkpoints, from which --resume goes on.
    teacher.CHECKPOINT_EPOCHS = 5

    # ---- loss of hhcl
    teacher.TEMPERATURE = 0.05
    # Share of a memory entry that is replaced at each visit.
    teacher.MOMENTUM = 0.2
    # Weight of the hardest instances; the centroids have the rest.
    teacher.MIX = 0.5
    # Whether centroids start as the mean embeddings of their identities, or random.
    teacher.INIT_MEMORY = True
    # Persons without identity: "instances", each has a memory entry of its own and is told from all
    # others; "queue", the newest QUEUE_SIZE of them are negatives; "none", left out.
    teacher.UNLABELED = "instances"
    teacher.QUEUE_SIZE = 512

    # ---- losses of s_reid, mgn, agw and pplr
    teacher.LABEL_SMOOTHING = 0.1
    # Of the triplet loss (s_reid, mgn). agw and pplr have none.
    teacher.MARGIN = 0.3
    # Weight of the center loss (s_reid, agw).
    teacher.CENTER_WEIGHT = 5e-4
    # pplr: neighbours compared between whole and parts, weight of the given label against what the
    # parts say, and epochs before the agreement is used.
    teacher.NEIGHBORS = 20
    teacher.LABEL_WEIGHT = 0.5
    teacher.AGREEMENT_FROM_EPOCH = 5
