# SPDX-License-Identifier: Apache-2.0
"""Command line arguments and what a user gets to see of errors."""

import logging

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from person_search.config import ProjectError, add_person_search_config
from person_search.data import BadImageError
from person_search.engine import argument_parser, friendly_errors, launch, merge_config
from person_search.utils import BackendError

CONTENT = "VERSION: 2\nDATASETS: {TRAIN: [prw_train]}\nSOLVER: {OPTIMIZER: AdamW, MAX_ITER: 7}\n"


def merged(*arguments: str) -> CfgNode:
    cfg = get_cfg()
    add_person_search_config(cfg)
    merge_config(cfg, argument_parser().parse_args(["--num-gpus", "0", *arguments]))
    return cfg


@pytest.fixture
def file(tmp_path) -> str:
    """A config file."""
    (tmp_path / "a.yaml").write_text(CONTENT)
    return str(tmp_path / "a.yaml")


def test_config_file_and_overrides(file) -> None:
    cfg = merged("--config-file", file, "SOLVER.MAX_ITER", "9")
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.MAX_ITER, cfg.MODEL.DEVICE) == ("AdamW", 9, "cpu")


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (
            ["MODEL.REID.NUM_PID", "3"],
            r"the command line: .*MODEL.REID.NUM_PID. Did you mean MODEL.REID.NUM_PIDS\?",
        ),
        (["SOLVER.MAX_ITER", "many"], "the command line: .*SOLVER.MAX_ITER|Type mismatch"),
        (["SOLVER.MAX_ITER"], "the command line: .*odd length.*KEY VALUE pairs"),
        (["SOLVER.MAX_ITER", "9", "--resume"], "line: --resume .* Options come first"),
        (["SOLVER.MAX_ITER", "9", "--output", "x"], "line: --output .* Options come first"),
        (["DATASETS.TRAIN", "mine"], r"Write it so: DATASETS.TRAIN \"\('mine',\)\"\."),
        (["SOLVER.STEPS", "7"], r"Write it so: SOLVER.STEPS \"\(7,\)\"\."),
        (
            ["TEST.PERSON_SEARCH.PROTOCOLS", "[g50,all]"],
            r"Write it so: TEST.PERSON_SEARCH.PROTOCOLS \"\['g50', 'all'\]\"\.",
        ),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCN"], r"Did you mean GeneralizedRCNN\?"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty.*'prw_train'"),
        (["--eval-only"], "DATASETS.TEST is empty"),
    ],
)
def test_wrong_overrides(opts, text, file) -> None:
    with pytest.raises(ValueError, match=text):
        merged("--config-file", file, *opts)


def test_no_config_file() -> None:
    with pytest.raises(ValueError, match="--config-file is missing.*configs/PSDiff"):
        merged("SOLVER.MAX_ITER", "9")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("VERSION: 2\nSOLVER:\n  OPTIMISER: SGD\n", "OPTIMISER. Did you mean SOLVER.OPTIMIZER?"),
        ("VERSION: 2\nSOLVER: [1\n", "a.yaml: while parsing"),
    ],
)
def test_wrong_config_file(tmp_path, content, text) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError) as error:
        merged("--config-file", str(tmp_path / "a.yaml"))
    assert text in str(error.value)


def test_absent_config_file() -> None:
    with pytest.raises(FileNotFoundError, match="--config-file 'absent.yaml' does not exist"):
        merged("--config-file", "absent.yaml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_gpu(file) -> None:
    cfg = get_cfg()
    add_person_search_config(cfg)
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda'.*--num-gpus 0"):
        merge_config(cfg, argument_parser().parse_args(["--config-file", file]))


# ---- friendly errors -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("value 3 is wrong."), "error: value 3 is wrong\n"),
        (KeyError("no key 'x'"), "error: no key 'x'\n"),
        (FileNotFoundError("no file y"), "error: no file y\n"),
        (BadImageError("cannot read z"), "error: cannot read z\n"),
        (ProjectError("no project"), "error: no project\n"),
        (BackendError("no Detectron2"), "error: no Detectron2\n"),
        (ValueError(), "error: ValueError\n"),
    ],
)
def test_one_message_instead_of_a_traceback(error, text, capsys, monkeypatch) -> None:
    monkeypatch.delenv("PERSON_SEARCH_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end, friendly_errors():
        raise error
    assert end.value.code == 2
    assert capsys.readouterr().err == text + "(--traceback shows where it was raised)\n"


def test_traceback_on_demand(monkeypatch) -> None:
    with pytest.raises(ValueError), friendly_errors(traceback=True):
        raise ValueError
    monkeypatch.setenv("PERSON_SEARCH_TRACEBACK", "1")
    with pytest.raises(ValueError), friendly_errors():
        raise ValueError


@pytest.mark.parametrize("error", [TypeError, RuntimeError, KeyboardInterrupt, AssertionError])
def test_defects_keep_their_traceback(error) -> None:
    with pytest.raises(error), friendly_errors():
        raise error


def test_log_file_gets_the_traceback(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PERSON_SEARCH_TRACEBACK", raising=False)
    logger = logging.getLogger("detectron2")
    with open(tmp_path / "log.txt", "w") as file:
        handler = logging.StreamHandler(file)
        logger.addHandler(handler)
        try:
            with pytest.raises(SystemExit), friendly_errors():
                raise ValueError("wrong")
        finally:
            logger.removeHandler(handler)
    text = (tmp_path / "log.txt").read_text()
    assert "Traceback" in text and "ValueError: wrong" in text


# ---- launch ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"num_gpus": 1, "num_processes": 2}, "--num-gpus 0"),
        ({"num_gpus": -1}, "at least 0"),
        ({"num_gpus": 0, "num_processes": 0}, "at least 1"),
        ({"num_gpus": 0, "num_machines": 2}, "--dist-url"),
        ({"num_gpus": 999}, "999, but .* CUDA devices are visible"),
    ],
)
def test_numbers_that_do_not_go_together(kwargs, text) -> None:
    with pytest.raises(ValueError, match=text):
        launch(print, **kwargs)


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_a_single_process_is_this_one(num_gpus) -> None:
    calls = []
    launch(lambda *args: calls.append(args), num_gpus=num_gpus, args=(1, 2))
    assert calls == [(1, 2)]
