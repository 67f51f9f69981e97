# SPDX-License-Identifier: Apache-2.0
"""Warnings where weights do not know the images of a gallery, and where the card is shown."""

import json

import pytest
import torch
from galleries import IDENTITY

from person_search.search.cli import main
from person_search.search.fit import describe_misfit
from person_search.search.folder_store import FolderStore
from person_search.utils.model_card import ModelCard
from person_search.utils.weight_files import read_weights, save_weights

DRAWN, REAL = [0.2] * 16, [0.6] * 16


def card(kind: str) -> ModelCard:
    return ModelCard("PSDiff", data=("mine",), kind=kind, images=7)


@pytest.mark.parametrize(
    ("kind", "details", "warns"),
    [
        ("drawn", REAL, True), ("photographs", DRAWN, True),
        ("drawn", DRAWN, False), ("photographs", REAL, False),
        ("mixed", REAL, False), ("unknown", REAL, False), ("unknown", DRAWN, False),
        ("drawn", [], False), ("drawn", [0.4], False),
    ],
)  # fmt: skip
def test_misfits(kind, details, warns) -> None:
    assert bool(describe_misfit(card(kind), details)) == warns
    assert describe_misfit(None, details) == ""


def test_the_sentence() -> None:
    assert describe_misfit(card("drawn"), REAL) == (
        "The model was trained on drawn persons (mine: 7 images), but these images seem to be "
        "photographs: expect wrong matches, even with a high similarity."
    )


def test_the_manifest_keeps_both(tmp_path) -> None:
    store = FolderStore.create(tmp_path / "g", 4, IDENTITY)
    with store.writing():
        store.replace_manifest(card=card("drawn"), color_details=(0.5, 0.25))
    manifest = FolderStore(tmp_path / "g").manifest
    assert manifest.card == card("drawn") and manifest.color_details == (0.5, 0.25)
    content = json.loads((tmp_path / "g" / "gallery.json").read_bytes())
    del content["color_details"]  # of an earlier version
    content["card"]["version"] = 99
    (tmp_path / "g" / "gallery.json").write_text(json.dumps(content))
    manifest = FolderStore(tmp_path / "g").manifest
    assert manifest.card is None and manifest.color_details == ()


def test_index_query_and_info(search_tool, tiny_run, tmp_path, capsys, caplog) -> None:
    """Images of uniform blocks are drawn by the measure; the weights know photographs."""
    weights = tmp_path / "w.safetensors"
    tensors = read_weights(tiny_run / "weights.pth")
    save_weights(weights, tensors, ModelCard("PSDiff", kind="photographs"))

    def shown(command: str, **changes) -> str:
        """All that a command prints or logs; the logger has its handler from an earlier run."""
        caplog.clear()
        assert search_tool(command, **changes) == 0
        printed = capsys.readouterr()
        return printed.out + printed.err + caplog.text

    for command in ("index", "query"):
        assert shown(command, weights=weights).count("seem to be drawn") == 1
    head = json.loads((tmp_path / "out" / "results.jsonl").read_text().splitlines()[0])
    assert head["gallery"]["model_card"]["kind"] == "photographs"
    assert "PSDiff, trained on photographs." in (tmp_path / "out" / "report.html").read_text()
    assert "PSDiff, trained on photographs" in shown("info")
    # the same weights without a card are the same model
    assert "seem to be drawn" not in shown("query")


def test_info_of_a_weight_file(tmp_path, capsys) -> None:
    weights = {"a": torch.zeros(1)}
    save_weights(tmp_path / "w.safetensors", weights, card("drawn"))
    torch.save(weights, tmp_path / "plain.pth")
    assert main(["info", "--weights", str(tmp_path / "w.safetensors")]) == 0
    assert "training data        drawn persons (mine: 7 images)" in capsys.readouterr().out
    assert main(["info", "--weights", str(tmp_path / "plain.pth")]) == 0
    assert "unknown (the weights have no model card)" in capsys.readouterr().out
    for words, message in (
        (["--weights", str(tmp_path / "zzz.pth")], "zzz.pth"),
        ([], "info requires --gallery or --weights"),
    ):
        with pytest.raises(SystemExit) as e:
            main(["info", *words])
        assert e.value.code == 2 and message in capsys.readouterr().err
