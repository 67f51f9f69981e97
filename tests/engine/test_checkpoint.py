# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: complete files only, and never loaded into another architecture."""

import errno
import json
import logging
import multiprocessing
import os
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from safetensors.torch import save_file
from tiny_model import TinyPersonSearch, register_tiny_dataset, unregister_dataset
from torch import nn
from weight_server import weight_server

from person_search.data import get_num_pids
from person_search.engine import (
    AtomicCheckpointer,
    CheckpointWriteError,
    IncompatibleCheckpointError,
)
from person_search.engine import checkpoint as checkpoint_module
from person_search.engine.checkpoint import TEMPORARY_SUFFIX, is_intact, write_safely
from person_search.modeling.oim import OIMLoss
from person_search.utils.model_card import CARD_KEY, ModelCard
from person_search.utils.weight_files import WeightFileError, read_card, save_weights

FORK = multiprocessing.get_context("fork")  # a process of its own without another start-up


def linear(value: float = 0.0, size: int = 4) -> nn.Linear:
    layer = nn.Linear(size, 1)
    nn.init.constant_(layer.weight, value)
    return layer


def saved_value(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["model"]["weight"][0, 0])


# ---- writing ---------------------------------------------------------------------------------
def test_format_and_names_are_detectron2s(tmp_path: Path) -> None:
    AtomicCheckpointer(linear(3.0), str(tmp_path)).save("model_0000004", iteration=4)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000004.pth"]
    model = linear()
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 4}
    assert float(model.weight[0, 0]) == 3.0


def test_nothing_is_written_without_a_folder_or_off_the_main_process(tmp_path: Path) -> None:
    AtomicCheckpointer(linear()).save("a")
    AtomicCheckpointer(linear(), str(tmp_path), save_to_disk=False).save("a")
    assert os.listdir(tmp_path) == []


def test_without_tag_the_last_checkpoint_stays(tmp_path: Path) -> None:
    AtomicCheckpointer(linear(), str(tmp_path)).save("model_0000001")
    AtomicCheckpointer(linear(), str(tmp_path), tag_last=False).save("model_best")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.parametrize("fail_at", ["write", "fsync", "rename", "interrupt"])
def test_a_failed_save_changes_nothing(tmp_path: Path, monkeypatch, fail_at: str) -> None:
    checkpointer = AtomicCheckpointer(linear(1.0), str(tmp_path))
    checkpointer.save("model_0000001")
    checkpointer.model.weight.data.fill_(2.0)

    def fail(*args, **kwargs):
        if fail_at == "interrupt":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"write": (torch, "save"), "interrupt": (torch, "save"), "fsync": (os, "fsync")}
    monkeypatch.setattr(*target.get(fail_at, (os, "replace")), fail)
    expected = KeyboardInterrupt if fail_at == "interrupt" else CheckpointWriteError
    with pytest.raises(expected) as error:
        checkpointer.save("model_0000001")
    if fail_at != "interrupt":
        assert "No space left on device" in str(error.value)
        assert "Earlier checkpoints are intact; free some space" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert saved_value(tmp_path / "model_0000001.pth") == 1.0


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match="File exists|Not a directory"):
        write_safely(str(tmp_path / "file" / "x"), b"x")


class SlowFile:
    """A file on a slow disk: it gets stuck in the middle of the first large block."""

    def __init__(self, file, pipe: Connection):
        self.file, self.pipe = file, pipe

    def write(self, data) -> int:
        if len(data) < 100_000:
            return self.file.write(data)
        self.file.write(bytes(data)[:100_000])
        self.file.flush()
        self.pipe.send("in the middle")
        time.sleep(60)
        return len(data)

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def save_slowly(folder: str, name: str, pipe: Connection) -> None:
    save = torch.save
    torch.save = lambda data, file: save(data, SlowFile(file, pipe))
    AtomicCheckpointer(nn.Linear(400, 400), folder).save(name, iteration=2)


@pytest.mark.parametrize("name", ["model_0000001", "model_0000002"], ids=["same", "new"])
def test_kill_9_while_saving(tmp_path: Path, caplog, name: str) -> None:
    model = nn.Linear(400, 400)
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    here, there = FORK.Pipe()
    child = FORK.Process(target=save_slowly, args=(str(tmp_path), name, there))
    child.start()
    assert here.poll(60) and here.recv() == "in the middle"
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    remains = tmp_path / f"{name}.pth{TEMPORARY_SUFFIX}"  # it was really killed in the middle
    assert 100_000 <= remains.stat().st_size < 640_000
    assert checkpointer.find_resumable() == str(tmp_path / "model_0000001.pth")
    assert checkpointer.load(checkpointer.find_resumable())["iteration"] == 1
    assert "damaged" not in caplog.text
    assert not remains.exists()


def test_an_evaluation_does_not_remove_incomplete_files(tmp_path: Path) -> None:
    AtomicCheckpointer(linear(), str(tmp_path)).save("model_0000001", iteration=1)
    growing = tmp_path / f"model_0000002.pth{TEMPORARY_SUFFIX}"
    growing.write_bytes(b"half")
    looking = AtomicCheckpointer(linear(), str(tmp_path), save_to_disk=False)
    assert looking.find_resumable() == str(tmp_path / "model_0000001.pth")
    assert growing.exists()
    AtomicCheckpointer(linear(), str(tmp_path)).find_resumable()
    assert not growing.exists()


def save_with_little_room(folder: str, pipe: Connection) -> None:
    checkpointer = AtomicCheckpointer(nn.Linear(400, 400), folder)
    checkpointer.save("model_0000001", iteration=1)
    no_limit = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, no_limit))
    try:
        checkpointer.save("model_0000002", iteration=2)
    except CheckpointWriteError as e:
        pipe.send(str(e))
    resource.setrlimit(resource.RLIMIT_FSIZE, (no_limit, no_limit))
    checkpointer.save("model_0000003", iteration=3)


def test_file_size_limit(tmp_path: Path) -> None:
    here, there = FORK.Pipe()
    child = FORK.Process(target=save_with_little_room, args=(str(tmp_path), there))
    child.start()
    assert here.poll(60)
    message = here.recv()
    child.join()
    assert child.exitcode == 0
    assert "model_0000002.pth': File too large" in message and "ulimit -f" in message
    names = ["last_checkpoint", "model_0000001.pth", "model_0000003.pth"]
    assert sorted(os.listdir(tmp_path)) == names
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert is_intact(str(tmp_path / "model_0000001.pth"))


# ---- finding ---------------------------------------------------------------------------------
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    weights = content.find(torch.full((64,), 7.0).numpy().tobytes())
    content[weights] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.fixture
def three(tmp_path: Path) -> AtomicCheckpointer:
    checkpointer = AtomicCheckpointer(linear(7.0, size=64), str(tmp_path))
    for name in ("model_0000009", "model_0000099", "model_0000199"):
        checkpointer.save(name)
    AtomicCheckpointer(linear(), str(tmp_path), tag_last=False).save("model_best")
    return checkpointer


@pytest.mark.parametrize(
    "damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")],
    ids=["truncated", "flipped", "missing", "empty"],
)  # fmt: skip
def test_a_damaged_last_checkpoint_is_skipped(three, tmp_path, caplog, damage) -> None:
    assert three.find_resumable() == str(tmp_path / "model_0000199.pth")
    damage(tmp_path / "model_0000199.pth")
    assert three.find_resumable() == str(tmp_path / "model_0000099.pth")
    assert "model_0000199.pth is damaged or missing" in caplog.text
    assert "Resuming from" in caplog.text


def test_without_tag_the_newest_is_found(three, tmp_path) -> None:
    (tmp_path / "last_checkpoint").unlink()
    assert three.find_resumable() == str(tmp_path / "model_0000199.pth")
    three.save("model_final")
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    assert three.find_resumable() == str(tmp_path / "model_final.pth")


def test_all_damaged(three, tmp_path) -> None:
    for path in tmp_path.glob("model_0*.pth"):
        cut(path)
    with pytest.raises(IncompatibleCheckpointError, match="All checkpoints in .* are damaged"):
        three.find_resumable()


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert AtomicCheckpointer(linear(), str(tmp_path / "absent")).find_resumable() == ""
    assert AtomicCheckpointer(linear()).find_resumable() == ""


def test_files_of_the_old_format_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": linear().state_dict()}, path, _use_new_zipfile_serialization=False)
    assert is_intact(str(path))
    cut(path)
    assert not is_intact(str(path))


# ---- reading ---------------------------------------------------------------------------------
class Backbone(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)


class Detector(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.backbone = Backbone(width)
        self.head = nn.Linear(width, 2)
        self.register_buffer("lut", torch.zeros(width, 2))


def save_model(model: nn.Module, path: Path) -> str:
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def load(path: str, model: nn.Module, **kwargs) -> dict:
    allow = kwargs.pop("allow_partial", False)
    return AtomicCheckpointer(model, allow_partial=allow).load(path, [], **kwargs)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = save_model(nn.LSTM(3, 4), tmp_path / "lstm.pth")
    with pytest.raises(IncompatibleCheckpointError) as error:
        load(path, Detector())
    text = str(error.value)
    assert "lstm.pth' is for another architecture: it has none of the model's parameters" in text
    assert "missing from the file: backbone.conv.weight, backbone.conv.bias" in text
    assert "only in the file: weight_ih_l0" in text
    assert "ALLOW_PARTIAL_LOAD" not in text
    with pytest.raises(IncompatibleCheckpointError):
        load(path, Detector(), allow_partial=True)


def test_keys_of_both_are_not_listed_as_only_in_the_file(tmp_path: Path) -> None:
    wider = Detector()
    wider.head = nn.Linear(5, 2)
    path = save_model(wider, tmp_path / "wider.pth")
    with pytest.raises(IncompatibleCheckpointError) as error:
        load(path, Detector(), need_whole=True)
    text = str(error.value)
    assert "different shape: head.weight (2, 5) in the file, (2, 4) in the model\n" in text
    assert "missing from the file: -\n" in text and "only in the file: -\n" in text


def backbone_file(path: Path) -> str:
    weights = {f"backbone.{k}": v for k, v in Backbone().state_dict().items()}
    torch.save({"model": weights}, path)
    return str(path)


def test_backbone_weights_start_a_training(tmp_path: Path) -> None:
    model = Detector()
    path = backbone_file(tmp_path / "backbone.pth")
    load(path, model)
    expected = torch.load(path, weights_only=True)["model"]["backbone.conv.weight"]
    assert torch.equal(model.backbone.conv.weight, expected)


def test_backbone_weights_cannot_be_evaluated_or_resumed(tmp_path: Path) -> None:
    path = backbone_file(tmp_path / "backbone.pth")
    with pytest.raises(IncompatibleCheckpointError, match=r"2 of 4 parameters \(50 %\) match"):
        load(path, Detector(), need_whole=True)
    with pytest.raises(IncompatibleCheckpointError, match="set MODEL.ALLOW_PARTIAL_LOAD True"):
        AtomicCheckpointer(Detector()).load(path)
    load(path, Detector(), need_whole=True, allow_partial=True)


def test_other_shapes_are_shown_with_both_sizes(tmp_path: Path) -> None:
    path = save_model(Detector(8), tmp_path / "wide.pth")
    with pytest.raises(IncompatibleCheckpointError) as error:
        load(path, Detector(4), need_whole=True)
    assert "head.weight (2, 8) in the file, (2, 4) in the model" in str(error.value)
    assert "1 of 4 parameters" in str(error.value)


def test_a_buffer_of_another_shape_counts(tmp_path: Path) -> None:
    other = Detector()
    other.lut = torch.zeros(9, 2)
    path = save_model(other, tmp_path / "lut.pth")
    with pytest.raises(IncompatibleCheckpointError, match=r"lut \(9, 2\) in the file"):
        load(path, Detector(), need_whole=True)
    load(path, Detector())


def test_missing_file_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weight file .*absent.pth.* MODEL.WEIGHTS"):
        load(str(tmp_path / "absent.pth"), Detector())
    assert load("", Detector()) == {}


def test_long_lists_are_cut() -> None:
    assert checkpoint_module._examples([str(i) for i in range(8)]) == "0, 1, 2, 3, 4 and 3 more"


# ---- safetensors ------------------------------------------------------------------------------
def test_safetensors_of_half_precision_load_like_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.full((1, 4), 0.5).half(), "bias": torch.zeros(1).half()}, path)
    model = linear()
    AtomicCheckpointer(model).load(str(path), checkpointables=[], need_whole=True)
    assert model.weight.dtype == torch.float32
    assert float(model.weight[0, 0]) == 0.5


def test_truncated_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(1, 4), "bias": torch.zeros(1)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightFileError, match="truncated or damaged"):
        AtomicCheckpointer(linear()).load(str(path))


# ---- identity buffers ---------------------------------------------------------------------
class WithMemory(nn.Module):
    """An embedding and the identity memory that trains it."""

    def __init__(self, num_pids: int, queue_size: int = 6, value: float = 0.0, dim: int = 4):
        super().__init__()
        self.embed = nn.Linear(3, dim)
        self.oim = OIMLoss(num_pids, dim, queue_size)
        nn.init.constant_(self.embed.weight, value)
        self.oim.lut.fill_(value)
        self.oim.cq.fill_(value)
        self.oim.cq_head.fill_(int(value))


def save_final(folder: Path, model: nn.Module) -> str:
    AtomicCheckpointer(model, str(folder)).save("model_final")
    return str(folder / "model_final.pth")


@pytest.mark.parametrize(("num_pids", "queue_size"), [(7, 6), (5, 9), (7, 9)])
@pytest.mark.parametrize("need_whole", [True, None])  # evaluation; start of a training
def test_identity_buffers_of_another_set_are_skipped_with_one_line(
    tmp_path, caplog, num_pids, queue_size, need_whole
):
    path = save_final(tmp_path, WithMemory(5, value=2.0))
    model = WithMemory(num_pids, queue_size)
    with caplog.at_level(logging.INFO):
        AtomicCheckpointer(model).load(path, checkpointables=[], need_whole=need_whole)
    assert (model.embed.weight == 2).all()
    for name in model.oim.identity_buffers:  # all three: one means nothing without the others
        assert (getattr(model.oim, name) == 0).all(), name
    lines = [r for r in caplog.records if "lut" in r.getMessage()]
    assert len(lines) == 1 and lines[0].levelno == logging.INFO
    message = lines[0].getMessage()
    assert "Identity tables of another training set" in message and path in message
    assert f"oim.lut (5, 4) -> ({num_pids}, 4)" in message
    assert f"oim.cq (6, 4) -> ({queue_size}, 4)" in message
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


def test_identity_buffers_of_the_same_size_are_loaded(tmp_path, caplog):
    path = save_final(tmp_path, WithMemory(5, value=2.0))
    model = WithMemory(5)
    with caplog.at_level(logging.INFO):
        AtomicCheckpointer(model).load(path, checkpointables=[])
    assert (model.oim.lut == 2).all() and model.oim.cq_head == 2
    assert "Identity tables" not in caplog.text


def test_resuming_needs_its_own_identity_buffers(tmp_path):
    path = save_final(tmp_path, WithMemory(5))
    with pytest.raises(
        IncompatibleCheckpointError, match=r"oim.lut \(5, 4\) in the file, \(7, 4\)"
    ):
        AtomicCheckpointer(WithMemory(7)).load(path)


def test_another_length_of_the_embedding_is_another_architecture(tmp_path):
    path = save_final(tmp_path, WithMemory(5))
    with pytest.raises(IncompatibleCheckpointError, match="embed.weight"):
        AtomicCheckpointer(WithMemory(5, dim=8)).load(path, checkpointables=[], need_whole=True)


def test_a_model_without_identity_buffers_loads_the_rest(tmp_path):
    path = save_final(tmp_path, WithMemory(5, value=2.0))
    plain = nn.Module()
    plain.embed = nn.Linear(3, 4)
    AtomicCheckpointer(plain).load(path, checkpointables=[], need_whole=True)
    assert (plain.embed.weight == 2).all()


def test_results_do_not_depend_on_identity_buffers(tmp_path):
    source = WithMemory(5, value=2.0)
    path, target = save_final(tmp_path, source), WithMemory(9, 3)
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
    """Evaluates as in the README, and with the config of the other data set."""
    architecture = ("MODEL.META_ARCHITECTURE", "TinyWithMemory")
    cfg = make_cfg("source", *architecture, "MODEL.REID.NUM_PIDS", 3)
    torch.manual_seed(0)
    path = save_final(tmp_path, build_model(cfg))
    results, log_lines = [], []
    for number, opts in enumerate(((), ("DATASETS.TRAIN", f"('{other_set}',)"))):
        folder = tmp_path / f"run{number}"
        run(
            "--eval-only", "MODEL.WEIGHTS", path, *architecture, "DATASETS.TEST",
            f"('{other_set}',)", "TEST.PERSON_SEARCH.SCORE_THRESH", "0.0",
            "TEST.PERSON_SEARCH.VARIANTS", "['gt']", "OUTPUT_DIR", str(folder), *opts,
        )  # fmt: skip
        results.append(json.loads((folder / "inference" / f"{other_set}_results.json").read_text()))
        lines = (folder / "log.txt").read_text().splitlines()
        log_lines.append([line for line in lines if "Identity tables of another" in line])
    assert [len(lines) for lines in log_lines] == [0, 1]
    assert "oim.lut (3, 8) -> (2, 8)" in log_lines[1][0]
    assert results[0]["dataset"] == other_set and results[0]["num_images"] == 4
    assert 0 < results[0]["results"]["search_all_gt"]["mAP"] < 100
    assert results[0]["results"] == results[1]["results"]


# ---- model card ------------------------------------------------------------------------------
def test_the_card_is_saved_and_loaded(tmp_path: Path, caplog) -> None:
    saver = AtomicCheckpointer(linear(2.0), str(tmp_path))
    saver.card = ModelCard("Linear", kind="drawn", embed_dim=4)
    saver.save("w")
    assert read_card(tmp_path / "w.pth") == saver.card
    # Detectron2 returns it as one of the entries that it does not know
    rest = DetectionCheckpointer(linear()).load(str(tmp_path / "w.pth"))
    assert ModelCard.from_json(rest[CARD_KEY]) == saver.card
    loader = AtomicCheckpointer(linear(), embed_dim=4)
    with caplog.at_level(logging.INFO):
        assert loader.load(str(tmp_path / "w.pth"), [], need_whole=True) == {}
    assert loader.loaded_card == saver.card
    assert "Linear, trained on drawn persons." in caplog.text
    torch.save({"model": linear().state_dict()}, tmp_path / "plain.pth")
    with caplog.at_level(logging.INFO):
        loader.load(str(tmp_path / "plain.pth"), [], need_whole=True)
    assert loader.loaded_card is None and "the weights have no model card" in caplog.text


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (
            ModelCard("Conv2d"),
            "describes another model: method Conv2d, but that of the model is Linear",
        ),
        (ModelCard("Linear", embed_dim=8), "embedding dimension 8, but that of the model is 4"),
    ],
)
def test_a_card_of_another_model_is_refused(tmp_path: Path, card, message) -> None:
    path = str(tmp_path / "w.safetensors")
    save_weights(path, linear(2.0).state_dict(), card)
    model = linear()
    with pytest.raises(IncompatibleCheckpointError, match=message):
        AtomicCheckpointer(model, method="Linear", embed_dim=4).load(path, [], need_whole=True)
    # a training may start from it, and a wrong card can be overruled
    AtomicCheckpointer(model, method="Linear", embed_dim=4).load(path, [])
    overruled = AtomicCheckpointer(model, method="Linear", embed_dim=4, allow_partial=True)
    overruled.load(path, [], need_whole=True)
    assert overruled.loaded_card == card


@pytest.mark.parametrize("text", ["{", '{"version": 1, "method": "Linear", "kind": "paintings"}'])
def test_an_unusable_card_is_ignored_with_a_warning(tmp_path: Path, caplog, text) -> None:
    path = str(tmp_path / "w.safetensors")
    save_file(linear(2.0).state_dict(), path, {CARD_KEY: text})
    loader = AtomicCheckpointer(linear())
    loader.load(path, [], need_whole=True)
    assert loader.loaded_card is None
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "model card" in record.getMessage() and "is unusable" in record.getMessage()


def test_weights_from_a_server(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "w.safetensors"
    save_weights(path, linear(2.0).state_dict(), ModelCard("Linear"))
    model = linear()
    with weight_server() as server:
        server.files["/w.safetensors"] = path.read_bytes()
        AtomicCheckpointer(model).load(f"{server.url}/w.safetensors", [], need_whole=True)
        with pytest.raises(OSError, match=r"zzz.pth' could not be downloaded: HTTP Error 404"):
            AtomicCheckpointer(model).load(f"{server.url}/zzz.pth", [])
    assert float(model.weight[0, 0]) == 2.0
