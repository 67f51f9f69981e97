# SPDX-License-Identifier: Apache-2.0
"""Weights of one data set in a model of another: identity tables stay behind, and it is said."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from tiny_model import TinyPersonSearch, register_tiny_dataset, unregister_dataset
from torch import nn

from person_search.data import get_num_pids
from person_search.engine import AtomicCheckpointer, IncompatibleCheckpointError
from person_search.modeling.oim import OIMLoss


class Model(nn.Module):
    """An embedding and the identity memory that trains it."""

    def __init__(self, num_pids: int, queue_size: int = 6, value: float = 0.0, dim: int = 4):
        super().__init__()
        self.embed = nn.Linear(3, dim)
        self.oim = OIMLoss(num_pids, dim, queue_size)
        nn.init.constant_(self.embed.weight, value)
        self.oim.lut.fill_(value)
        self.oim.cq.fill_(value)
        self.oim.cq_head.fill_(int(value))


def save(folder: Path, model: nn.Module) -> str:
    AtomicCheckpointer(model, str(folder)).save("model_final")
    return str(folder / "model_final.pth")


@pytest.mark.parametrize(("num_pids", "queue_size"), [(7, 6), (5, 9), (7, 9)])
@pytest.mark.parametrize("need_whole", [True, None])  # evaluation; start of a training
def test_foreign_tables_are_left_out_with_one_line(
    tmp_path, caplog, num_pids, queue_size, need_whole
):
    path = save(tmp_path, Model(5, value=2.0))
    model = Model(num_pids, queue_size)
    with caplog.at_level(logging.INFO):
        AtomicCheckpointer(model).load(path, checkpointables=[], need_whole=need_whole)
    assert (model.embed.weight == 2).all()
    for name in model.oim.identity_buffers:  # all three: one means nothing without the others
        assert (getattr(model.oim, name) == 0).all(), name
    told = [r for r in caplog.records if "lut" in r.getMessage()]
    assert len(told) == 1 and told[0].levelno == logging.INFO
    message = told[0].getMessage()
    assert "Identity tables of another training set" in message and path in message
    assert f"oim.lut (5, 4) -> ({num_pids}, 4)" in message
    assert f"oim.cq (6, 4) -> ({queue_size}, 4)" in message
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


def test_tables_of_the_same_size_are_loaded_in_silence(tmp_path, caplog):
    path = save(tmp_path, Model(5, value=2.0))
    model = Model(5)
    with caplog.at_level(logging.INFO):
        AtomicCheckpointer(model).load(path, checkpointables=[])
    assert (model.oim.lut == 2).all() and model.oim.cq_head == 2
    assert "Identity tables" not in caplog.text


def test_a_training_that_goes_on_needs_its_own_tables(tmp_path):
    path = save(tmp_path, Model(5))
    with pytest.raises(
        IncompatibleCheckpointError, match=r"oim.lut \(5, 4\) in the file, \(7, 4\)"
    ):
        AtomicCheckpointer(Model(7)).load(path)


def test_another_length_of_the_embedding_is_another_architecture(tmp_path):
    path = save(tmp_path, Model(5))
    with pytest.raises(IncompatibleCheckpointError, match="embed.weight"):
        AtomicCheckpointer(Model(5, dim=8)).load(path, checkpointables=[], need_whole=True)


def test_a_model_without_tables_takes_the_rest(tmp_path):
    path = save(tmp_path, Model(5, value=2.0))
    plain = nn.Module()
    plain.embed = nn.Linear(3, 4)
    AtomicCheckpointer(plain).load(path, checkpointables=[], need_whole=True)
    assert (plain.embed.weight == 2).all()


def test_figures_do_not_depend_on_the_tables(tmp_path):
    source = Model(5, value=2.0)
    path, target = save(tmp_path, source), Model(9, 3)
    AtomicCheckpointer(target).load(path, checkpointables=[], need_whole=True)
    scene = torch.rand(2, 3)
    torch.testing.assert_close(target.embed(scene), source.embed(scene), rtol=0, atol=0)


@META_ARCH_REGISTRY.register()
class TinyWithMemory(TinyPersonSearch):
    """The tiny model with the identity memory that DiffPS is trained with."""

    @configurable
    def __init__(self, *, num_pids: int, embed_dim: int, **arguments):
        super().__init__(num_pids=0, embed_dim=embed_dim, **arguments)
        self.oim = OIMLoss(num_pids, embed_dim, 6)


@pytest.fixture
def other_set(tmp_path: Path):
    """A data set of other images, with two identities in place of three."""
    name = "tiny_for_crossing"
    records = register_tiny_dataset(name, tmp_path / "others", num_images=4)
    for annotation in (a for record in records for a in record["annotations"]):
        annotation["person_id"] = min(annotation["person_id"], 1)
    assert get_num_pids(name) == 2
    yield name
    unregister_dataset(name)


def test_the_command_scores_another_data_set(run, make_cfg, other_set, tmp_path) -> None:
    """As the README has it, and with the other data set's own config: the same figures."""
    architecture = ("MODEL.META_ARCHITECTURE", "TinyWithMemory")
    cfg = make_cfg("source", *architecture, "MODEL.REID.NUM_PIDS", 3)
    torch.manual_seed(0)
    path = save(tmp_path, build_model(cfg))
    found, told = [], []
    for number, opts in enumerate(((), ("DATASETS.TRAIN", f"('{other_set}',)"))):
        folder = tmp_path / f"run{number}"
        run(
            "--eval-only", "MODEL.WEIGHTS", path, *architecture, "DATASETS.TEST",
            f"('{other_set}',)", "TEST.PERSON_SEARCH.SCORE_THRESH", "0.0",
            "TEST.PERSON_SEARCH.VARIANTS", "['gt']", "OUTPUT_DIR", str(folder), *opts,
        )  # fmt: skip
        found.append(json.loads((folder / "inference" / f"{other_set}_results.json").read_text()))
        lines = (folder / "log.txt").read_text().splitlines()
        told.append([line for line in lines if "Identity tables of another" in line])
    assert [len(lines) for lines in told] == [0, 1]
    assert "oim.lut (3, 8) -> (2, 8)" in told[1][0]
    assert found[0]["dataset"] == other_set and found[0]["num_images"] == 4
    assert 0 < found[0]["results"]["search_all_gt"]["mAP"] < 100
    assert found[0]["results"] == found[1]["results"]
