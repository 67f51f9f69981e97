# SPDX-License-Identifier: Apache-2.0
"""Config keys of the two-stage baseline."""

from detectron2.config import CfgNode as CN


def add_twostage_config(cfg: CN) -> None:
    """Adds ``MODEL.TWO_STAGE`` to a config, in place."""
    cfg.MODEL.TWO_STAGE = CN()
    two = cfg.MODEL.TWO_STAGE
    # ---- detector
    # "torchvision/<name>" for a model of torchvision.models.detection; a name in Detectron2's
    # META_ARCH_REGISTRY that is built from the same config, for example "GeneralizedRCNN" or
    # "PSDiff"; or "predictions/<path>" for the detections of a predictions file.
    two.DETECTOR = "torchvision/fasterrcnn_mobilenet_v3_large_fpn"
    # Initial weights where MODEL.WEIGHTS is empty: "" random, "coco" downloaded by torchvision, or
    # the path or URL of a state dict of the detector.
    two.DETECTOR_WEIGHTS = ""
    # Classes of the detector besides the background. The first is person. Weights of COCO have 90
    # in torchvision and 80 in Detectron2.
    two.DETECTOR_CLASSES = 1
    # Whether training updates the detector. False: its losses are not computed.
    two.TRAIN_DETECTOR = True
    # Detections of one image: lowest score, highest IoU that NMS keeps, greatest number. Those of a
    # predictions file stay as they are.
    two.SCORE_THRESH = 0.05
    two.NMS_THRESH = 0.5
    two.MAX_DETECTIONS = 100

    # ---- re-ID network
    # "timm/<name>", "torchvision/<name>" (a classifier), "torchreid/<name>", e.g. osnet_x1_0, or a
    # name in CROP_EMBEDDER_REGISTRY, e.g. "PSDiffTeacher", to which the keys below do not apply.
    two.REID = "timm/mobilenetv2_100"
    # Initial weights where MODEL.WEIGHTS is empty: "" random, "imagenet" downloaded, or the path or
    # URL of a state dict.
    two.REID_WEIGHTS = ""
    # Whether training updates the re-ID network. False: only the projection is trained.
    two.TRAIN_REID = True
    # Crop height and width in pixels.
    two.CROP_SIZE = [256, 128]
    # Mean and standard deviation of the re-ID network's RGB input in 0 .. 1.
    two.REID_MEAN = [0.485, 0.456, 0.406]
    two.REID_STD = [0.229, 0.224, 0.225]
    # Whether a linear layer reduces the features to MODEL.REID.EMBED_DIM. False: the embedding is
    # the feature of the network itself, as for a network without any training on persons.
    two.PROJECT = True
    # Loss of the embedding: OIM with this temperature and queue of unlabeled persons.
    two.TEMPERATURE = 0.033
    two.QUEUE_SIZE = 500
