# SPDX-License-Identifier: Apache-2.0
"""The imitation baseline: embeddings without denoising."""

import pytest
import torch
from psdiff_tiny import EMBED_DIM, image_input, tiny_model, training_input


def predict(model, reid_signal):
    features = model.backbone(torch.zeros(1, 3, 64, 64))
    boxes = torch.tensor([[[4.0, 4.0, 30.0, 60.0], [20.0, 4.0, 50.0, 60.0]]])
    return model.head(features, boxes, reid_signal, torch.tensor([500]))


@pytest.mark.parametrize("prediction", ["cascaded", "parallel", "skip"])
def test_only_diffusion_sees_the_noisy_embeddings(prediction) -> None:
    a, b = torch.randn(2, 1, 2, EMBED_DIM).unbind(0)
    for reid_input, same in (("imitation", True), ("diffusion", False)):
        model = tiny_model(CDL__REID_INPUT=reid_input, CDL__PREDICTION=prediction).eval()
        with torch.no_grad():
            first, second = predict(model, a), predict(model, b)
        assert torch.equal(first.reid_feats, second.reid_feats) is same
        assert torch.equal(first.boxes, second.boxes) is same


def test_it_trains_and_embeds() -> None:
    model = tiny_model(CDL__REID_INPUT="imitation")
    losses = model.train()([training_input()])
    sum(losses.values()).backward()
    assert model.head.cdl.reid_in.bias.grad.abs().sum() > 0
    assert model.head.cdl.reid_in.weight.grad.abs().sum() == 0
    model.eval()
    with torch.no_grad():
        assert model([image_input(queries=2)])[0]["query_feats"].shape == (2, EMBED_DIM)


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CDL.REID_INPUT is 'copy'.*'imitation'"):
        tiny_model(CDL__REID_INPUT="copy")
