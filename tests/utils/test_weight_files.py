# SPDX-License-Identifier: Apache-2.0
"""The reader of weight files: forms that it unwraps, and one sentence for unusable files."""

import argparse
import collections
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from person_search.utils.weight_files import (
    WeightFileError,
    open_safetensors,
    read_checkpoint,
    read_weights,
)

WEIGHTS = {"a": torch.tensor([1.0]), "b.c": torch.tensor([[2.0]])}
METADATA = {
    "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("x")),
    "best": np.float64(3.5),
    "epoch": np.int64(7),
    "curve": np.arange(3),
    "mode": torch.nn.init.xavier_uniform_,
}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    """Returns ``save(content)``: the path of a file in the current or the old format."""

    def save(content) -> str:
        path = str(tmp_path / "weights.pth")
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "iteration": 3},
        {"state_dict": {f"module.{k}": v for k, v in WEIGHTS.items()}, "epoch": 2},
        {"model": {"state_dict": WEIGHTS}},
        {"model": WEIGHTS, **METADATA},
        {"net": {k: v.numpy() for k, v in WEIGHTS.items()}},
        {**WEIGHTS, "step": 5},
    ],
    ids=["flat", "detectron2", "module", "nested", "metadata", "arrays", "counter"],
)
def test_weights_in_any_form(save, content) -> None:
    found = read_weights(save(content))
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(value, WEIGHTS[name]) for name, value in found.items())


def test_plain_metadata_is_kept_and_objects_are_emptied(save) -> None:
    found = read_checkpoint(save({"model": WEIGHTS, "iteration": 3, **METADATA}))
    assert found["iteration"] == 3 and found["best"] == 3.5 and found["epoch"] == 7
    assert found["curve"].tolist() == [0, 1, 2]
    assert not vars(found["args"])


class RunsCode:
    """Would create a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_code_of_the_file_runs(save, tmp_path) -> None:
    path = save({"model": WEIGHTS, "trap": RunsCode(str(tmp_path / "trapped"))})
    assert read_weights(path).keys() == WEIGHTS.keys()
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "holds a list instead of a state dict; save the weights"),
        ({"epoch": 1}, "holds a dict with the keys 'epoch' instead of a state dict"),
        (nn.Linear(1, 1), "save the weights alone with torch.save"),
        ({"model": nn.Linear(1, 1)}, "save the weights alone with torch.save"),
        (
            {"model": WEIGHTS, "log": collections.defaultdict(int, a=1)},
            r"more than tensors and plain values \(collections.defaultdict",
        ),
    ],
)
def test_files_without_a_state_dict(save, content, text) -> None:
    with pytest.raises(WeightFileError, match=text) as error:
        read_weights(save(content))
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_files(save, kept) -> None:
    path = pathlib.Path(save({"model": WEIGHTS}))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(WeightFileError, match="is truncated or damaged .*download or copy it"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html>\n<html>Sign in</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"some notes on training", "is not a checkpoint"),
        (b'{"a": 1}', "is not a checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_another_kind(tmp_path, content, text, suffix) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    for read in (read_weights, lambda path: open_safetensors(path).__enter__()):
        with pytest.raises(WeightFileError, match=text) as error:
            read(path)
        assert f"weights.{suffix}" in str(error.value) and "weights_only" not in str(error.value)


def test_safetensors_under_any_name(tmp_path) -> None:
    for name in ("a.safetensors", "b.pth"):
        save_file(WEIGHTS, tmp_path / name)
        assert torch.equal(read_weights(tmp_path / name)["b.c"], WEIGHTS["b.c"])
    with open_safetensors(tmp_path / "b.pth", framework="numpy") as file:
        assert file.get_tensor("a").tolist() == [1.0]
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-2])
    with pytest.raises(WeightFileError, match="truncated or damaged"):
        read_weights(tmp_path / "a.safetensors")
    torch.save(WEIGHTS, tmp_path / "c.safetensors")
    assert read_weights(tmp_path / "c.safetensors").keys() == WEIGHTS.keys()
    with pytest.raises(WeightFileError, match="is not a safetensors file"):
        open_safetensors(tmp_path / "c.safetensors").__enter__()


def test_missing_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "absent.pth")
