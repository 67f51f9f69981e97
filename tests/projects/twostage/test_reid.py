# SPDX-License-Identifier: Apache-2.0
"""The second stage: crops, networks of several libraries, teachers."""

import pytest
import torch
import torchvision
from psdiff_tiny import tiny_cfg as psdiff_cfg
from twostage_tiny import tiny_cfg

from psdiff.teachers.crops import crop_image
from psdiff.teachers.registry import build_teacher
from twostage.config import add_twostage_config
from twostage.reid import CropEmbedder, build_reid

IMAGE = torch.randint(0, 256, (3, 80, 120), dtype=torch.uint8)
BOXES = torch.tensor([[10.0, 5, 40, 75], [60, 10, 90, 70]])


def test_a_crop_is_the_region_of_the_box_in_rgb() -> None:
    """A red box in a BGR image gives red crops, whatever the size of the box."""
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    embedder = CropEmbedder(
        net, 3, embed_dim=0, crop_size=(8, 4), mean=[0.0] * 3, std=[1.0] * 3, is_bgr=True
    )
    image = torch.zeros(3, 40, 40)
    image[2, 10:30, 10:20] = 255.0
    crops = embedder.crops(image, torch.tensor([[10.0, 10, 20, 30], [25, 0, 35, 40]]))
    assert crops.shape == (2, 3, 8, 4)
    torch.testing.assert_close(crops[0, 0], torch.ones(8, 4), atol=0.1, rtol=0)
    assert crops[0, 1:].abs().max() == 0 and crops[1].abs().max() == 0


@pytest.mark.parametrize("name, dim", [("resnet18", 512), ("mobilenet_v2", 1280)])
def test_classifiers_of_torchvision_and_their_files(name, dim, tmp_path, caplog) -> None:
    source = torchvision.models.get_model(name, weights=None)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    changes = {"PROJECT": False, "REID_WEIGHTS": str(tmp_path / "w.pth")}
    with caplog.at_level("INFO"):
        embedder = build_reid(tiny_cfg(REID=f"torchvision/{name}", **changes)).eval()
    assert embedder.embed_dim == dim and "matched by name, 2 of the file not used" in caplog.text
    if name == "resnet18":
        assert torch.equal(embedder.net.conv1.weight, source.conv1.weight)
    assert embedder([IMAGE], [BOXES]).shape == (2, dim)


def test_a_teacher_embeds_as_in_its_own_project(tmp_path) -> None:
    """The upper bound "detector + its own teacher" is computed by the teacher itself."""
    cfg = psdiff_cfg()
    add_twostage_config(cfg)
    cfg.MODEL.WEIGHTS = ""
    teacher = build_teacher(cfg).eval()
    teacher.save(str(tmp_path / "teacher.safetensors"))
    cfg.MODEL.TWO_STAGE.REID = "PSDiffTeacher"
    cfg.MODEL.TWO_STAGE.REID_WEIGHTS = str(tmp_path / "teacher.safetensors")
    embedder = build_reid(cfg).eval()
    empty = torch.zeros(0, 4)
    with torch.no_grad():
        found = embedder([IMAGE, IMAGE, IMAGE], [BOXES[:1], empty, BOXES[1:]])
        wanted = teacher(crop_image(IMAGE, BOXES.tolist(), teacher.crop_size))
        torch.testing.assert_close(found, wanted)
        assert embedder([IMAGE], [empty]).shape == (0, embedder.embed_dim)
    assert not torch.equal(
        embedder.net.project.weight, build_reid(psdiff_like(cfg)).net.project.weight
    )


def psdiff_like(cfg):
    """The same config for a checkpoint that follows: the file is not read."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = "model_final.pth"
    return cfg


def test_osnet() -> None:
    pytest.importorskip("torchreid", reason="torchreid is not installed")
    embedder = build_reid(tiny_cfg(REID="torchreid/osnet_x0_25", PROJECT=False))
    assert embedder.train()([IMAGE], [BOXES]).shape == (2, 512)
    assert embedder.eval()([IMAGE], [BOXES]).shape == (2, 512)
