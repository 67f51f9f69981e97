# SPDX-License-Identifier: Apache-2.0
"""Weight files: forms that are unwrapped, model cards, downloads, one sentence where unusable."""

import argparse
import collections
import pathlib
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weight_server import weight_server

from person_search.utils.model_card import CARD_KEY, ModelCard
from person_search.utils.weight_files import (
    WeightFileError,
    fetch_weights,
    open_safetensors,
    read_card,
    read_checkpoint,
    read_weights,
    save_weights,
    write_card,
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


# ---- model cards -------------------------------------------------------------------------------
CARD = ModelCard("PSDiff", kind="drawn", images=3)


def test_card_of_a_pth_file(save) -> None:
    path = save({"model": WEIGHTS, **METADATA})
    assert read_card(path) is None
    write_card(path, CARD)
    assert read_card(path) == CARD
    content = read_checkpoint(path)
    assert ModelCard.from_json(content[CARD_KEY]) == CARD
    assert content["epoch"] == 7 and content["model"].keys() == WEIGHTS.keys()


def test_card_of_a_bare_state_dict(save) -> None:
    path = save(WEIGHTS)
    write_card(path, CARD)
    assert read_card(path) == CARD and read_weights(path).keys() == WEIGHTS.keys()


def test_card_of_a_safetensors_file(tmp_path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    save_weights(path, WEIGHTS, None, {"recipe": "soup"})
    assert read_card(path) is None and CARD_KEY not in read_checkpoint(path)
    write_card(path, CARD)
    assert read_card(path) == CARD
    with open_safetensors(path) as file:
        assert {"recipe": "soup", "format": "pt"}.items() <= file.metadata().items()
    assert all(torch.equal(value, WEIGHTS[name]) for name, value in read_weights(path).items())
    write_card(path, ModelCard("DiffPS"))
    assert read_card(path) == ModelCard("DiffPS")


@pytest.mark.parametrize("text", ["{", '{"method": "PSDiff", "version": 1, "kind": "paintings"}'])
def test_an_unusable_card_names_the_file(tmp_path, text) -> None:
    path = tmp_path / "w.safetensors"
    save_file(WEIGHTS, path, {CARD_KEY: text})
    with pytest.raises(WeightFileError, match=r"The model card of '.*w.safetensors' is unusable"):
        read_card(path)
    assert read_weights(path).keys() == WEIGHTS.keys()  # the weights are not affected


def test_foreign_metadata_and_other_files_have_no_card(tmp_path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors", {"format": "pt", "modelspec": "x"})
    assert read_card(tmp_path / "w.safetensors") is None
    (tmp_path / "zoo.pkl").write_bytes(b"not opened")
    assert read_card(tmp_path / "zoo.pkl") is None


def test_card_of_a_truncated_file(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, WEIGHTS, CARD)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightFileError, match="truncated or damaged"):
        read_card(path)


def test_shipped_weights_have_cards(repo_root) -> None:
    files = sorted((repo_root / "projects").rglob("weights/**/*.safetensors"))
    assert files
    for file in files:
        card = read_card(file)
        assert card is not None and card.kind == "drawn" and card.license == "Apache-2.0", file


# ---- downloads ---------------------------------------------------------------------------------
@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server, also in the place of the hub; nothing is cached yet."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_weights(tmp_path / "served.safetensors", WEIGHTS, CARD)
    with weight_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        content = (tmp_path / "served.safetensors").read_bytes()
        server.files = {
            "/a/w.safetensors": content,
            "/owner/name/resolve/main/w.safetensors": content,
            "/owner/two/resolve/main/1.pth": content,
            "/owner/two/resolve/main/2.safetensors": content,
        }
        yield server


def test_a_local_path_is_itself() -> None:
    assert fetch_weights("some/w.pth") == "some/w.pth"


def test_a_file_is_downloaded_once(server) -> None:
    path = fetch_weights(f"{server.url}/a/w.safetensors")
    assert read_card(path) == CARD
    assert fetch_weights(f"{server.url}/a/w.safetensors") == path
    assert server.requests == ["/a/w.safetensors"]


def test_equal_paths_of_two_servers_are_different_files(server) -> None:
    first = fetch_weights(f"{server.url}/a/w.safetensors")
    with weight_server() as other:
        other.files["/a/w.safetensors"] = server.files["/a/w.safetensors"]
        assert fetch_weights(f"{other.url}/a/w.safetensors") != first
        assert other.requests


def test_a_web_page_is_downloaded_again(server) -> None:
    content = server.files["/a/w.safetensors"]
    server.files["/a/w.safetensors"] = b"<html>please log in</html>"
    with pytest.raises(WeightFileError, match="is a web page"):
        fetch_weights(f"{server.url}/a/w.safetensors")
    server.files["/a/w.safetensors"] = content
    assert read_card(fetch_weights(f"{server.url}/a/w.safetensors")) == CARD


def test_downloads_that_fail(server) -> None:
    with pytest.raises(OSError, match="could not be downloaded: HTTP Error 404.*Check the address"):
        fetch_weights(f"{server.url}/a/zzz.pth")
    with weight_server() as other:
        gone = other.url
    with pytest.raises(OSError, match="could not be downloaded: .*refused.*a local file"):
        fetch_weights(f"{gone}/a/w.pth")
    with pytest.raises(WeightFileError, match=r"has the query '\?download=true'"):
        fetch_weights(f"{server.url}/a/w.safetensors?download=true")


@pytest.mark.parametrize(
    "name", ["hf://owner/name", "hf://owner/name/w.safetensors", "hf://owner/name@main"]
)
def test_a_file_of_the_hub(server, name) -> None:
    assert read_card(fetch_weights(name)) == CARD


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://owner/zzz", "there is no repository 'owner/zzz'"),
        ("hf://owner/name/z.pth", "has no file 'z.pth'. Its weight files: w.safetensors"),
        ("hf://owner/two", "has no 'model.safetensors'. Its weight files: 1.pth, 2.safetensors"),
        ("hf://owner/name@v9", "'owner/name' has no revision 'v9'"),
        ("hf://owner", "is malformed; expected is hf://owner/name"),
        ("hf://owner/name@", "is malformed; expected is hf://owner/name"),
        ("hf://owner/na me", "is malformed: .*na me"),
    ],
)
def test_what_the_hub_lacks(server, name, message) -> None:
    with pytest.raises((OSError, WeightFileError), match=message):
        fetch_weights(name)


def test_the_hub_without_a_network(server, monkeypatch) -> None:
    from huggingface_hub import constants

    cached = fetch_weights("hf://owner/name/w.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_weights("hf://owner/name/w.safetensors") == cached
    with pytest.raises(OSError, match="not in the local cache, and the hub cannot be reached"):
        fetch_weights("hf://owner/two/1.pth")


def test_the_hub_without_its_library(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightFileError, match=r"pip install 'person-search\[hub\]'"):
        fetch_weights("hf://owner/name")
