# SPDX-License-Identifier: Apache-2.0
"""An exported model must give the results of PyTorch, and refuse what it cannot do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from psdiff_tiny import tiny_cfg, tiny_model

from person_search.search.export import write_onnx
from person_search.search.identity import ModelIdentity
from person_search.search.onnx_embedder import OnnxEmbedder
from person_search.search.onnx_model import (
    FORMAT_VERSION,
    OnnxModel,
    OnnxModelError,
    TorchNoise,
    suppress,
)
from psdiff.box_diffusion import SignalCodec
from psdiff.export import (
    PSDiffGraph,
    ddim_coefficients,
)
from psdiff.sampler import SamplerSettings, Trajectory

SIDE = 96
IDENTITY = ModelIdentity("PSDiff", "0123456789abcdef", {}, {})
VALUES = {
    "version": FORMAT_VERSION,
    "precision": "float32",
    "image_format": "BGR",
    "min_size": 60,
    "max_size": 90,
    "identity": IDENTITY.to_json(),
}


@pytest.fixture(scope="module")
def model():
    """With fresh noise in each step and several draws for a query, as in the demo."""
    return tiny_model(ETA=1.0, QUERY_DRAWS=2, SEED=3).eval()


@pytest.fixture(scope="module")
def exported(model):
    return model.export(SIDE)


@pytest.fixture(scope="module")
def onnx_file(exported, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    stale = path.with_name("model.onnx.data")
    stale.write_bytes(b"")
    write_onnx(exported, path, VALUES)
    assert not stale.exists(), "weights of the file before, which was larger"
    return path


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def check_detections(model, path: Path, size: tuple[int, int]) -> None:
    """Compares the detections of a file with those of its model in PyTorch."""
    pixels = np.ascontiguousarray(image(*size).transpose(2, 0, 1))
    (wanted,) = model.inference(
        [{"image": torch.from_numpy(pixels), "image_id": 5}], do_postprocess=False
    )
    boxes, scores, feats = OnnxModel(path, 1).detect_in(pixels, 5)
    assert len(wanted) > 1
    np.testing.assert_allclose(boxes, wanted.pred_boxes.tensor, atol=1e-3)
    np.testing.assert_allclose(scores, wanted.scores, atol=1e-4)
    np.testing.assert_allclose(feats, wanted.reid_feats, atol=1e-4)


@pytest.mark.parametrize("size", [(61, 90), (96, 64), (40, 41)])
def test_detections_are_those_of_pytorch(model, onnx_file, size) -> None:
    check_detections(model, onnx_file, size)


def test_resnet_50_fpn(tmp_path) -> None:
    """Detectron2's backbone with few channels, boxes on four levels; also an image of one cell."""
    cfg = tiny_cfg(CDL__IN_FEATURES=["p2", "p3", "p4", "p5"], CDL__CANONICAL_BOX_SIZE=32)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    torch.manual_seed(0)
    resnet = build_model(cfg).eval()
    write_onnx(resnet.export(SIDE), tmp_path / "model.onnx", VALUES)
    for size in ((61, 90), (30, 32)):
        check_detections(resnet, tmp_path / "model.onnx", size)


def test_given_boxes_are_embedded_as_in_pytorch(model, onnx_file) -> None:
    pixels = np.ascontiguousarray(image(61, 90).transpose(2, 0, 1))
    boxes = np.array([[5, 6, 30, 50], [20, 1, 60, 55.5]], np.float32)
    given = Instances((61, 90), pred_boxes=Boxes(torch.from_numpy(boxes)))
    (wanted,) = model.inference(
        [{"image": torch.from_numpy(pixels), "image_id": 2}], [given], do_postprocess=False
    )
    exported = OnnxModel(onnx_file, 1)
    np.testing.assert_allclose(exported.embed_in(pixels, boxes, 2), wanted.reid_feats, atol=1e-4)
    assert exported.embed_in(pixels, boxes[:0]).shape == (0, 16)


def test_a_large_image_is_resized_and_its_boxes_are_scaled_back(onnx_file) -> None:
    exported, large = OnnxModel(onnx_file, 1), image(400, 300)
    small = exported.resize(large)
    assert small.shape == (80, 60, 3)
    assert exported.resize(image(300, 600)).shape == (45, 90, 3), "limited by the longer side"
    boxes, _, feats = exported.detect(large)
    wanted = exported.detect_in(small.transpose(2, 0, 1))
    np.testing.assert_allclose(boxes, wanted[0] * 5, rtol=1e-5)
    np.testing.assert_array_equal(feats, wanted[2])
    np.testing.assert_allclose(
        exported.embed(large, [[10, 20, 100, 300]]),
        exported.embed_in(small.transpose(2, 0, 1), np.array([[2, 4, 20, 60]])),
        atol=1e-5,
    )


def test_torch_program_gives_the_same_step(model, exported) -> None:
    torch.manual_seed(0)
    d = model.backbone.size_divisibility
    maps = [torch.randn(1, 16, 24, 16), torch.randn(1, 16, 12, 8)]
    inputs = (
        torch.rand(1, 3, 96 // d, d, 64 // d, d) * 255,
        maps,
        torch.tensor([93.0, 60.0]),
        torch.randn(1, 12, 20),
        torch.randn(1, 12, 20),
        torch.tensor([499]),
        torch.tensor([0.3, 0.5, 0.2]),
    )
    with torch.no_grad():
        results = zip(exported.program.module()(*inputs), PSDiffGraph(model)(*inputs), strict=True)
    for mine, wanted in results:
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_coefficients_are_those_of_the_sampler(eta) -> None:
    torch.manual_seed(0)
    codec, settings = SignalCodec(), SamplerSettings(steps=6, eta=eta)
    trajectory = Trajectory(codec, settings, renewable=False)
    x = torch.randn(1, 5, 20)
    factors = ddim_coefficients(settings)
    assert len(factors) == 5
    for a, b, c in factors:
        start = torch.cat([torch.rand(1, 5, 4), torch.randn(1, 5, 16)], -1)
        clean = torch.cat([start[..., :4], codec.encode_reid(start[..., 4:])], -1)
        noise = torch.randn(1, 5, 20)
        wanted = torch.cat(
            trajectory.step(start[..., :4], start[..., 4:], x[..., :4], x[..., 4:], noise), -1
        )
        torch.testing.assert_close(a * clean + b * x + c * noise, wanted, atol=1e-4, rtol=1e-4)
        x = wanted


@pytest.mark.parametrize("seed", [0, 5, 7_000_000_123])
def test_noise_is_that_of_pytorch(seed) -> None:
    generator, noise = torch.Generator().manual_seed(seed), TorchNoise(seed)
    for shape in ((12, 20), (1, 16), (3, 7), (64, 132)):
        wanted = torch.randn(shape, generator=generator)
        np.testing.assert_allclose(noise.normal(*shape), wanted, atol=2e-6)


def test_suppression_is_that_of_torchvision() -> None:
    from torchvision.ops import nms

    corner = torch.rand(200, 2) * 40
    boxes, scores = torch.cat([corner, corner + 5 + torch.rand(200, 2) * 20], 1), torch.rand(200)
    kept = suppress(boxes.numpy(), scores.numpy(), 0.5)
    assert 0 < len(kept) < 200 and kept.tolist() == nms(boxes, scores, 0.5).tolist()
    assert len(suppress(np.zeros((0, 4)), np.zeros(0), 0.5)) == 0


def test_embedder(onnx_file) -> None:
    """The file stands for its model in a gallery; quantized weights are another precision."""
    embedder = OnnxEmbedder(onnx_file, 0.0)
    assert IDENTITY.differences(embedder.identity) == [] and embedder.embed_dim == 16
    found = embedder.detect(image(200, 300))
    assert len(found) > 1 and found.image_size == (200, 300)
    np.testing.assert_allclose(found.reid_feats.norm(dim=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="outside the image"):
        embedder.embed_in(image(200, 300), [(400, 10, 440, 70)])
    embedder.score_thresh = float(found.scores[0])
    assert len(embedder.detect(image(200, 300))) == 1
    embedder.precision = "int8"
    del embedder.identity
    assert "TEST.PRECISION" in embedder.identity.detection


def edited(source: Path, target: Path, change) -> Path:
    """Copies a file with other metadata."""
    proto = onnx.load(source)
    change(proto.metadata_props)
    onnx.save(proto, target)
    return target


def test_unusable_files(onnx_file, tmp_path) -> None:
    def new_version(props) -> None:
        props[0].value = json.dumps({**json.loads(props[0].value), "version": 9})

    with pytest.raises(OnnxModelError, match="has version 9; this program reads version 2"):
        OnnxModel(edited(onnx_file, tmp_path / "a.onnx", new_version))
    without = edited(onnx_file, tmp_path / "b.onnx", lambda props: props.pop())
    with pytest.raises(OnnxModelError, match="has no metadata 'person_search'"):
        OnnxModel(without)
    (tmp_path / "c.onnx").write_bytes(onnx_file.read_bytes()[:1000])
    with pytest.raises(OnnxModelError, match="is not a readable ONNX model"):
        OnnxModel(tmp_path / "c.onnx")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        OnnxModel(tmp_path / "missing.onnx")


def test_image_outside_of_the_bounds(onnx_file) -> None:
    with pytest.raises(OnnxModelError, match="98 x 30 pixels.*sides up to 96.*--max-side"):
        OnnxModel(onnx_file, 1).detect_in(image(30, 98).transpose(2, 0, 1))


def test_without_onnxruntime(onnx_file, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'person-search\[onnx\]'"):
        OnnxModel(onnx_file)


def test_runs_without_pytorch(onnx_file) -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'detectron2']))\n"
        "import numpy as np\n"
        "from person_search.search.onnx_model import OnnxModel\n"
        "boxes, scores, feats = OnnxModel(sys.argv[1], 1).detect(np.zeros((90, 60, 3), np.uint8))\n"
        "print(feats.shape[1])"
    )
    command = [sys.executable, "-c", program, str(onnx_file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.stdout == "16\n", result.stderr


@pytest.mark.parametrize(
    ("key", "value"), [("SAMPLER", "dpmsolver++"), ("RENEWAL", True), ("ENSEMBLE", True)]
)
def test_settings_that_cannot_be_exported(key, value) -> None:
    with pytest.raises(ValueError, match=f"MODEL.PSDIFF.{key} is {value}"):
        PSDiffGraph(tiny_model(**{key: value}).eval())
