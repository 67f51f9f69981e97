# SPDX-License-Identifier: Apache-2.0
"""DiffPS in the search engine: images have the size of the training."""

import torch
from diffps_model_tiny import EMBED_DIM, tiny_cfg, tiny_model
from PIL import Image

from person_search.search import PersonEmbedder
from person_search.search.images import read_image


def test_images_are_sized_as_in_training(tiny_sd, tmp_path):
    """By the mapper of the config, each axis separately; a small image is enlarged to 128 x 192."""
    cfg = tiny_cfg(tiny_sd, ROI_HEADS__SCORE_THRESH_TEST=0.0)
    cfg.DATALOADER.MAPPER = "DiffPSMapper"
    cfg.MODEL.DIFFPS.INPUT.SIZE = [128, 192]
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.0
    weights, path = tmp_path / "model.pth", tmp_path / "small.png"
    torch.save({"model": tiny_model(tiny_sd).state_dict()}, weights)
    Image.effect_noise((48, 40), 80).convert("RGB").save(path)

    embedder = PersonEmbedder.from_config(cfg, str(weights))
    sizes = []
    embedder.model.backbone.register_forward_hook(lambda m, args, out: sizes.append(args[0].shape))
    feats = embedder.embed(path, [(4, 4, 40, 36)])
    found = embedder.detect(read_image(path, embedder.image_format))
    assert [tuple(size) for size in sizes] == [(1, 3, 128, 192)] * 2
    assert feats.shape == (1, EMBED_DIM) and len(found) > 0
    boxes = found.pred_boxes.tensor
    assert (boxes[:, 2] <= 48).all() and (boxes[:, 3] <= 40).all()
