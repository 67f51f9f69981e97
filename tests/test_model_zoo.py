# SPDX-License-Identifier: Apache-2.0
"""Configs by name, as in Detectron2's model zoo."""

import pytest
import torch

from person_search import model_zoo

SLIM = "PSDiff/tiny/psdiff_slim_synthetic.yaml"


def test_every_config_has_a_name_and_loads() -> None:
    names = model_zoo.list_configs()
    assert SLIM in names and "Base-PersonSearch.yaml" in names
    cfg = model_zoo.get_config(SLIM)
    assert cfg.MODEL.META_ARCHITECTURE == "PSDiff" and not cfg.is_frozen()
    assert cfg.SOLVER.IMS_PER_BATCH, "a key of Base-PersonSearch.yaml, two levels of _BASE_ up"


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match=f"Did you mean .*{SLIM}"):
        model_zoo.get_config_file("PSDiff/psdiff_slim_synthetic.yaml")
    with pytest.raises(FileNotFoundError, match="Did you mean PSDiff/psdiff_r50_fpn_prw.yaml or"):
        model_zoo.get_config_file("PSDiff/psdiff_r50_fpn_prv.yaml")
    with pytest.raises(FileNotFoundError, match="not in the model zoo.$"):
        model_zoo.get_config_file("zzz")


def test_weights_that_are_not_published() -> None:
    for call in (model_zoo.get_checkpoint_url, lambda name: model_zoo.get(name, trained=True)):
        with pytest.raises(RuntimeError, match=r"no trained weights of .* \(published: none yet\)"):
            call(SLIM)


def test_published_weights_are_loaded(tmp_path, monkeypatch) -> None:
    model = model_zoo.get(SLIM, device="cpu")
    assert not model.training
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    monkeypatch.setitem(model_zoo.WEIGHT_URLS, SLIM, str(tmp_path / "w.pth"))
    assert model_zoo.get_config(SLIM, trained=True).MODEL.WEIGHTS == str(tmp_path / "w.pth")
    other = model_zoo.get(SLIM, trained=True, device="cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
