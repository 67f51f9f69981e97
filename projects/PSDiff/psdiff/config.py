# SPDX-License-Identifier: Apache-2.0
"""Config keys of PSDiff with meaning, unit and place in the paper."""

from collections.abc import Collection

from detectron2.config import CfgNode as CN


def check_choice(key: str, value: object, allowed: Collection[object]) -> None:
    """Raises ValueError unless the value of ``MODEL.PSDIFF.<key>`` is allowed."""
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"MODEL.PSDIFF.{key} is {value!r}; allowed: {names}.")


def check_range(key: str, value: float, low: float, high: float | None = None) -> None:
    """Raises ValueError unless ``MODEL.PSDIFF.<key>`` is a number from ``low`` to ``high``."""
    if not low <= value or (high is not None and not value <= high):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"MODEL.PSDIFF.{key} is {value}; it must be {limits}.")


def add_psdiff_config(cfg: CN) -> None:
    """Adds ``MODEL.PSDIFF`` in place to a config that already has the keys of the shared core."""
    cfg.MODEL.PSDIFF = CN()
    psdiff = cfg.MODEL.PSDIFF

    # ---- signals and noise (Section IV-A) ------------------------------------------------------
    # Proposals per image (N) in training.
    psdiff.NUM_PROPOSALS = 300
    # Signal scale of boxes (s1) and of embeddings (s2), Eq. 10.
    psdiff.SNR_BOX = 2.0
    psdiff.SNR_REID = 3.0
    # Norm of a teacher embedding before it is scaled by s2, where the paper says "into [-1, 1]":
    # "l2" (length one), "max" (largest entry one) or "rms" (sqrt(D): an entry has unit variance).
    psdiff.EMBED_NORM = "l2"
    # Padding of the ground truths of an image to N: "repeat" them, "noise" (random boxes and
    # embeddings) or "mix" (repeat up to half of N, then noise).
    psdiff.PAD = "repeat"

    # ---- Collaborative Denoising Layer (Section IV-B) -----------------------------------------
    psdiff.CDL = CN()
    # Feature maps read by RoI pooling, and the side length of the pooled window.
    psdiff.CDL.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    psdiff.CDL.POOLER_RESOLUTION = 7
    psdiff.CDL.POOLER_SAMPLING_RATIO = 2
    # Side length in pixels of a box that is pooled from CANONICAL_LEVEL; FPN paper, Eq. 1.
    psdiff.CDL.CANONICAL_BOX_SIZE = 224
    psdiff.CDL.CANONICAL_LEVEL = 4
    # Switches of Table IV (b): self-attention, dynamic convolution, cross-attention.
    psdiff.CDL.SA = True
    psdiff.CDL.DC = True
    psdiff.CDL.CA = True
    # Self-attention over the "proposals" of an image or over the "cells" of each RoI.
    psdiff.CDL.SA_OVER = "proposals"
    psdiff.CDL.HEADS = 8
    # Scale of a noisy embedding at the layer's input: "plain", divided by s2, or "wiener", also
    # weighted by the share of signal in it at time t, so that pure noise is suppressed.
    psdiff.CDL.TOKEN_SCALE = "plain"
    # Channels between and after the two dynamic kernels. Larger values exceed 31 M (Table II).
    psdiff.CDL.DC_DIM = 12
    psdiff.CDL.DC_OUT = 16
    # Table IV (c): "cascaded" (detection reads the predicted embedding), "parallel" (both read the
    # collaborative feature) or "skip" (cascaded, and detection also reads its own feature).
    psdiff.CDL.PREDICTION = "skip"
    # Initialization of the time modulation and of the kernels' dependence on the embedding: "small"
    # (zero, and a tenth of Xavier), or "xavier" as for all other layers (paper).
    psdiff.CDL.CONDITIONING_INIT = "small"
    # Hidden layers of the class branch and of the box branch.
    psdiff.CDL.NUM_CLS = 1
    psdiff.CDL.NUM_REG = 3
    # Embedding input of the layer: "diffusion", the noisy embedding, or "imitation", one learned
    # vector for all proposals: embeddings imitate the teacher without denoising (Table VI, left).
    psdiff.CDL.REID_INPUT = "diffusion"

    # ---- training (Algorithm 1, Eq. 13 and 14) -------------------------------------------------
    # Draws of time and noise per image and iteration (paper: one). They share the image features,
    # so more draws cost little where the backbone dominates.
    psdiff.TRAIN_DRAWS = 1
    # Share of draws whose boxes get no noise, only the embeddings. In inference, this is the input
    # for given (query) boxes and EMBED_DETECTIONS; with noisy boxes only, it never occurs early.
    psdiff.TRUE_BOXES = 0.0
    # Share of iterations in which the noisy proposals are what a sampling step makes of the layer's
    # own predictions at noisier times, as in inference, instead of noise on the ground truth
    # (step-unrolled denoising, Savinov et al. 2022). The first prediction has no gradient, and
    # reads no embedding of the teacher.
    psdiff.UNROLL = 0.0
    # Assignment of proposals to ground truths: "dynamic_k" or "hungarian".
    psdiff.MATCHER = "dynamic_k"
    # Number of highest IoUs whose sum is the number of proposals of a ground truth (dynamic_k).
    psdiff.MATCHER_TOP_IOUS = 5
    # Weight of the embedding distance in the matching cost. The other weights are those of the
    # losses. "The matching cost is defined as" Eq. 13, taken literally, gives 5 (LOSS.REID).
    psdiff.MATCHER_REID = 0.0
    psdiff.LOSS = CN()
    psdiff.LOSS.CLS = 2.0
    psdiff.LOSS.L1 = 5.0
    psdiff.LOSS.GIOU = 2.0
    psdiff.LOSS.REID = 5.0
    psdiff.LOSS.FOCAL_ALPHA = 0.25
    psdiff.LOSS.FOCAL_GAMMA = 2.0

    # ---- inference (Algorithm 2) ---------------------------------------------------------------
    # Denoising steps, 1 to 1000. All keys of this section can be changed without retraining:
    # model.set_inference(steps=4), or for one call model.inference(..., steps=4).
    psdiff.STEPS = 8
    # Proposals per image in testing; 0: NUM_PROPOSALS.
    psdiff.NUM_PROPOSALS_TEST = 0
    # Time budget in milliseconds for detection in one image on this machine. The largest number of
    # steps within the budget is used, from 1 to STEPS. It is measured at the first inference for
    # the largest image size of INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, and is the same for all
    # images and processes. 0: no budget, always STEPS.
    psdiff.LATENCY_BUDGET_MS = 0.0
    # "ddim", "dpmsolver" or "dpmsolver++" (Table V), and the order (1 to 3) of the latter two.
    psdiff.SAMPLER = "ddim"
    psdiff.SOLVER_ORDER = 2
    # Share of fresh noise in a DDIM step: 0 (deterministic) to 1 (as in DDPM). DDIM only.
    psdiff.ETA = 0.0
    # Minimum score of a detection, and the IoU threshold of NMS.
    psdiff.SCORE_THRESH = 0.05
    psdiff.NMS_THRESH = 0.5
    # Applies NMS to the predictions of all steps instead of the last step only.
    psdiff.ENSEMBLE = False
    # Box renewal of DiffusionDet: replaces proposals that score below RENEWAL_THRESH by new noise,
    # box and embedding, after each step but the last.
    psdiff.RENEWAL = False
    psdiff.RENEWAL_THRESH = 0.5
    # Embeds detections like queries, by denoising once more with the final box held fixed. False:
    # the embedding of the last step, as in the paper.
    psdiff.EMBED_DETECTIONS = False
    # Number of noise draws over which the embedding of a given (query) box is averaged.
    psdiff.QUERY_DRAWS = 1
    # Denoising steps for the embedding of a given (query) box. 0: as many as STEPS.
    psdiff.QUERY_STEPS = 0
    # Factor on the noisy embedding that each step receives, 0 to 1. 1: as in the paper. 0: each
    # step embeds from the image alone, and only the boxes are refined.
    psdiff.REID_FEEDBACK = 1.0
    # Share of the teacher in the similarity of two persons, 0 to 1. Above 0, the frozen teacher is
    # a part of the model (set the key in training and testing): it embeds the crops of detections
    # and queries, and its embedding, weighted by the root of the share, is appended to that of the
    # layer. 0: the teacher only teaches, as in the paper.
    psdiff.FROZEN_SHARE = 0.0
    # Seed of the noise. The noise of an image depends on (SEED, image_id), not on its batch.
    psdiff.SEED = 0

    _add_teacher_config(psdiff)


def _add_teacher_config(psdiff: CN) -> None:
    """Adds ``TEACHER``, the re-ID teachers of Section V-D and Table VI and their training.

    The defaults are those of HHCL; configs/PSDiff/teachers/ has the other methods.
    """
    psdiff.TEACHER = CN()
    teacher = psdiff.TEACHER
    # safetensors file with the teacher embedding (e_0) of each training box, written by
    # projects/PSDiff/tools/compute_embeddings.py.
    teacher.EMBEDDINGS = ""
    # Method: "hhcl", "s_reid", "mgn", "agw" or "pplr" (Table VI), or "stripes", which computes its
    # head in closed form from frozen features, for a few hundred crops.
    teacher.NAME = "hhcl"
    # Weights of the teacher, written by train_teacher.py: for embedding, or as initialization.
    teacher.WEIGHTS = ""

    # ---- network
    # Crop height and width in pixels.
    teacher.CROP_SIZE = [256, 128]
    # "torchvision/<a ResNet>", "timm/<any model>", or a name in Detectron2's BACKBONE_REGISTRY.
    teacher.BACKBONE = "torchvision/resnet50"
    # Initial weights of the backbone: "" (random), "imagenet" (download by torchvision or timm), or
    # the path of a state dict (.pth or .safetensors).
    teacher.BACKBONE_WEIGHTS = ""
    # Stride of the last stage: 2, or 1 to double the height and width of the feature map. Ignored
    # by MGN, whose branches have both.
    teacher.LAST_STRIDE = 1
    # Names of the feature maps of a timm model that are used (stripes), such as "res2" (stride 4).
    teacher.FEATURES = []
    # Dimension of each reduced feature (mgn), number of horizontal stripes (pplr, stripes), and
    # number of non-local blocks at the end of each stage (agw).
    teacher.PART_DIM = 256
    teacher.NUM_PARTS = 3
    teacher.NON_LOCAL = [0, 2, 3, 0]

    # ---- training data
    # Identities per batch (P) and crops per identity (K).
    teacher.IDS_PER_BATCH = 16
    teacher.CROPS_PER_ID = 4
    # All crops are kept in memory: "raw" (5.4 GB for 55,000 crops of 256 x 128 pixels) or "jpeg"
    # (about a fifth, decoded on access).
    teacher.CROPS_IN_MEMORY = "raw"
    # Augmentation besides flipping and shifting: maximum relative change of brightness and of
    # contrast; probability, minimum and maximum area share of random erasing.
    teacher.COLOR_JITTER = [0.0, 0.0]
    teacher.RANDOM_ERASING = [0.5, 0.02, 0.4]

    # ---- training
    # "Adam" or "SGD" (momentum 0.9).
    teacher.OPTIMIZER = "Adam"
    teacher.BASE_LR = 3.5e-4
    teacher.WEIGHT_DECAY = 5e-4
    # Length of the training. An epoch covers the labeled crops once. MAX_ITER > 0 has precedence.
    # Only "stripes" needs no training (EPOCHS 0).
    teacher.EPOCHS = 50
    teacher.MAX_ITER = 0
    # "step": multiply by GAMMA at each of STEP_EPOCHS; "cosine": half a cosine down to zero.
    teacher.SCHEDULE = "step"
    teacher.STEP_EPOCHS = [20, 40]
    teacher.GAMMA = 0.1
    # Linear warm-up that starts at WARMUP_FACTOR times the learning rate.
    teacher.WARMUP_EPOCHS = 0
    teacher.WARMUP_FACTOR = 0.1
    # Number of epochs between checkpoints; --resume continues from the last one.
    teacher.CHECKPOINT_EPOCHS = 5

    # ---- loss of hhcl
    teacher.TEMPERATURE = 0.05
    # Share of a memory entry that is replaced at each update; HHCL's release states the share that
    # is kept.
    teacher.MOMENTUM = 0.8
    # Weight of the hardest instances; the centroids have weight 1 - MIX.
    teacher.MIX = 0.5
    # Initializes the centroids to the mean embeddings of their identities instead of randomly.
    teacher.INIT_MEMORY = True
    # Persons without identity: "instances" (each has its own memory entry and is a class of its
    # own), "queue" (the latest QUEUE_SIZE of them are negatives) or "none" (not used).
    teacher.UNLABELED = "instances"
    teacher.QUEUE_SIZE = 512

    # ---- losses of s_reid, mgn, agw and pplr
    teacher.LABEL_SMOOTHING = 0.1
    # Margin of the triplet loss (s_reid, mgn).
    teacher.MARGIN = 0.3
    # Weight of the center loss (s_reid, agw).
    teacher.CENTER_WEIGHT = 5e-4
    # pplr: number of neighbors compared between the whole person and its parts, weight of the given
    # label against the predictions of the parts, and first epoch that smooths labels of the parts.
    teacher.NEIGHBORS = 20
    teacher.LABEL_WEIGHT = 0.5
    teacher.AGREEMENT_FROM_EPOCH = 5
