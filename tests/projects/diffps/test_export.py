# SPDX-License-Identifier: Apache-2.0
"""An exported DiffPS, the frozen model included, must give the results of PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from diffps_model_tiny import EMBED_DIM, tiny_cfg, tiny_model
from PIL import Image

from diffps.data import BilinearResize, ResizeTo, ResizeToBudget
from diffps.export import DiffPSGraph
from diffps.tiny import TinySizes, write_tiny_diffusion
from person_search.search.export import write_onnx
from person_search.search.identity import ModelIdentity
from person_search.search.onnx_embedder import OnnxEmbedder
from person_search.search.onnx_model import FORMAT_VERSION, OnnxModel, OnnxModelError, bilinear

CARD = {
    "version": FORMAT_VERSION,
    "precision": "float32",
    "image_format": "RGB",
    "min_size": 60,
    "max_size": 90,
    "resize": ResizeToBudget(64 * 128).describe(),
    "identity": ModelIdentity("DiffPS", "0123456789abcdef", {}, {}).to_json(),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With a modulation that matters; most boxes of the random heads pass the threshold.

    A UNet of two resolutions, and few activations: an export takes as long as tracing each
    operation does, one of the default size minutes.
    """
    folder = tmp_path_factory.mktemp("diffusion")
    sizes = TinySizes(unet_channels=(16, 24), unet_heads=(2, 3), unet_layers=1)
    write_tiny_diffusion(folder, sizes=sizes)
    options = {
        "BACKBONE__OUT_FEATURES": ["u0r1_res", "u1r0_k"],
        "BACKBONE__ATTN__LAYERS": ["u1r0"],
        "DET_AGG__IN_FEATURE": "u1r0_k",
        "MSFRN__LEVELS": [["u0r1_res"], ["u1r0_k"]],
        "DGRPN__GAMMA_INIT": 0.7,
        "DGRPN__DELTA": 1.0,
    }
    return tiny_model(folder, **{f"DIFFPS__{key}": value for key, value in options.items()}).eval()


@pytest.fixture(scope="module")
def resnet_model():
    torch.manual_seed(0)
    cfg = tiny_cfg("not read", BACKBONE__NAME="ResNetActivations", DIFFPS__DGRPN__ENABLED=False)
    cfg.MODEL.SLIM_RESNET.WIDTHS, cfg.MODEL.SLIM_RESNET.STEM_WIDTH = [4, 6, 8, 10], 4
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res3", "res4", "res5"], 8
    cfg.MODEL.DIFFPS.RESNET.CHANNELS, cfg.MODEL.DIFFPS.RESNET.TEXT_DIM = [32, 24, 16], 32
    return build_model(cfg).eval()


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory) -> Path:
    """The whole model: VAE, UNet and heads."""
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    write_onnx(model.export(256), path, CARD)
    return path


@pytest.fixture(scope="module")
def heads(model):
    return model.export(256, heads_only=True)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (3, height, width)).astype(np.float32)


@pytest.mark.parametrize("part", ["whole", "heads", "with ResNet"])
@pytest.mark.parametrize("size", [(64, 128), (100, 150)])
def test_graph_gives_the_results_of_the_model(model, resnet_model, size, part) -> None:
    """For a size that is a multiple of the divisor, and for a padded image."""
    model, heads_only = resnet_model if "ResNet" in part else model, part == "heads"
    item, given = {"image": torch.from_numpy(image(*size))}, torch.tensor(size).float()
    (wanted,) = model.inference([item], do_postprocess=False)
    assert len(wanted) > 1
    graph = DiffPSGraph(model, heads_only)
    images, features = model.activations([item])
    inputs = [features[name] for name in graph.names]
    if not heads_only:
        pixels = images.tensor * model.pixel_std + model.pixel_mean
        divisor = model.backbone.size_divisibility
        inputs = [pixels.unflatten(3, (-1, divisor)).unflatten(2, (-1, divisor))]
    with torch.no_grad():
        maps = graph.encode(inputs, given)
        boxes = wanted.pred_boxes.tensor
        results = graph(inputs, given, [maps[name] for name in graph.maps], boxes)
    torch.testing.assert_close(results[-3], boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(results[-2], wanted.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(results[-1], wanted.reid_feats, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 128), (100, 150), (256, 192), (40, 30)])
def test_detections_are_those_of_pytorch(model, onnx_file, size) -> None:
    """For sizes that are multiples of the divisor, and for padded images."""
    pixels = image(*size)
    (wanted,) = model.inference([{"image": torch.from_numpy(pixels)}], do_postprocess=False)
    boxes, scores, feats = OnnxModel(onnx_file, 1).detect_in(pixels)
    assert len(wanted) > 1
    np.testing.assert_allclose(boxes, wanted.pred_boxes.tensor, atol=1e-3)
    np.testing.assert_allclose(scores, wanted.scores, atol=1e-4)
    np.testing.assert_allclose(feats, wanted.reid_feats, atol=1e-4)


@pytest.mark.slow
def test_given_boxes_are_embedded_as_in_pytorch(model, onnx_file) -> None:
    pixels, boxes = image(100, 150), np.array([[5, 6, 30, 50], [70, 1, 140, 95.5]], np.float32)
    given = Instances((100, 150), pred_boxes=Boxes(torch.from_numpy(boxes)))
    (wanted,) = model.inference(
        [{"image": torch.from_numpy(pixels)}], [given], do_postprocess=False
    )
    exported = OnnxModel(onnx_file, 1)
    np.testing.assert_allclose(exported.embed_in(pixels, boxes), wanted.reid_feats, atol=1e-4)
    assert exported.embed_in(pixels, boxes[:0]).shape == (0, EMBED_DIM)


@pytest.mark.slow
def test_embedder_resizes_as_the_mapper(onnx_file) -> None:
    embedder, pixels = OnnxEmbedder(onnx_file, 0.0), np.uint8(image(60, 90).transpose(1, 2, 0))
    prepared = embedder.prepare(pixels)["image"]
    wanted = BilinearResize((60, 90), (64, 128)).apply_image(pixels).transpose(2, 0, 1)
    np.testing.assert_allclose(prepared, wanted, atol=1e-3)
    found = embedder.detect(pixels)
    assert len(found) > 1 and found.image_size == (60, 90)
    assert embedder.embed_in(pixels, [(5, 5, 30, 50)]).shape == (1, EMBED_DIM)


@pytest.mark.parametrize("size", [(64, 192), (192, 64), (90, 90)])
def test_bilinear_is_that_of_pytorch(size) -> None:
    pixels = np.asarray(Image.effect_noise((90, 60), 80).convert("RGB"))
    wanted = BilinearResize((60, 90), size).apply_image(pixels)
    np.testing.assert_allclose(bilinear(pixels, *size), wanted, atol=1e-3)
    assert ResizeTo(size).describe() == {"size": size}


@pytest.mark.slow
def test_heads_alone_take_activations(model, heads, tmp_path, monkeypatch) -> None:
    pixels = image(100, 150)
    item = {"image": torch.from_numpy(pixels)}
    (wanted,) = model.inference([item], do_postprocess=False)
    _, features = model.activations([item])
    names = list(heads.values["features"])
    assert names == ["u0r1_res", "u1r0_k", "attn"]

    monkeypatch.setattr("person_search.search.export.MAX_BYTES", 1000)
    write_onnx(heads, tmp_path / "heads.onnx", CARD)
    assert (tmp_path / "heads.onnx.data").stat().st_size > 1000, "as weights of 2 GB"
    exported = OnnxModel(tmp_path / "heads.onnx", 1)
    found = exported.run_heads({name: features[name].numpy() for name in features}, (100, 150))
    np.testing.assert_allclose(found[0], wanted.pred_boxes.tensor, atol=1e-3)
    np.testing.assert_allclose(found[1], wanted.scores, atol=1e-4)
    np.testing.assert_allclose(found[2], wanted.reid_feats, atol=1e-4)
    with pytest.raises(OnnxModelError, match="takes the activations u.*, attn instead of an image"):
        exported.detect_in(pixels)
    with pytest.raises(OnnxModelError, match="heads.onnx' holds the heads alone"):
        OnnxEmbedder(tmp_path / "heads.onnx", 0.0)


@pytest.mark.parametrize(
    ("key", "value"), [("NOISE", "seeded"), ("VAE_SAMPLE", True), ("DTYPE", "bfloat16")]
)
def test_settings_that_cannot_be_exported(tiny_sd, key, value) -> None:
    other = tiny_model(tiny_sd, **{f"DIFFPS__BACKBONE__{key}": value}).eval()
    with pytest.raises(ValueError, match=f"BACKBONE.{key} is {value}; .* --heads-only"):
        DiffPSGraph(other, heads_only=False)
    DiffPSGraph(other, heads_only=True)
