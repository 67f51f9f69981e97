# SPDX-License-Identifier: Apache-2.0
"""Output folders: evaluations do not overwrite the record of a training."""

import json
from pathlib import Path

import pytest
import yaml
from detectron2.data import MetadataCatalog
from tiny_runs import evaluate_in_two_processes
from two_processes import run_in_two_processes

from person_search.config import default_config
from person_search.engine import DatasetError, PersonSearchTrainer, evaluation_config


def record(folder: Path) -> tuple[str, str]:
    return (folder / "config.yaml").read_text(), (folder / "results.json").read_text()


@pytest.fixture
def trained(run) -> Path:
    """The output folder of a finished training."""
    return run("SOLVER.MAX_ITER", "7")


def test_evaluations_do_not_change_the_record_of_the_training(run, trained, caplog) -> None:
    before = record(trained)
    weights = ("--eval-only", "MODEL.WEIGHTS", str(trained / "model_final.pth"))
    key = "TEST.PERSON_SEARCH.SCORE_THRESH"
    for value in ("0.1", "0.3"):
        run(*weights, key, value)
    (early,) = trained.glob("model_0000003.pth")
    run("--eval-only", "MODEL.WEIGHTS", str(early))
    run("--eval-only", "--resume", key, "0.1", "TEST.PERSON_SEARCH.DUMP_PREDICTIONS", "True")
    assert record(trained) == before
    folders = sorted(trained.glob("eval/*"))
    assert [x.name for x in folders] == [f"{key}=0.1", f"{key}=0.3", "model_0000003"]
    for folder in folders:
        assert json.loads((folder / "results.json").read_text())["search"]
        assert f"The results are in {folder / 'results.json'}" in caplog.text
        assert (folder / "log.txt").is_file() and list(folder.glob("inference/*_results.json"))
    assert list(folders[0].glob("inference/*_predictions.npz"))
    configs = [yaml.safe_load((x / "config.yaml").read_text()) for x in folders]
    assert [x["TEST"]["PERSON_SEARCH"]["SCORE_THRESH"] for x in configs] == [0.1, 0.3, 0.2]
    assert configs[2]["MODEL"]["WEIGHTS"] == str(early)


def test_the_same_evaluation_stays_with_the_training(run, trained) -> None:
    """Settings of the training, of the machine and of further files make no other evaluation."""
    config, results = record(trained)
    for arguments in (
        ["--resume"],
        ["MODEL.WEIGHTS", str(trained / "model_final.pth"), "SOLVER.BASE_LR", "7.0"],
        ["--resume", "TEST.PERSON_SEARCH.DUMP_PREDICTIONS", "True"],
    ):
        (trained / "results.json").unlink()
        run("--eval-only", *arguments)
        assert record(trained) == (config, results)
    assert not (trained / "eval").exists()
    assert list(trained.glob("inference/*_predictions.npz"))


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_run_that_cannot_start_does_not_change_the_record(run, trained, resume) -> None:
    before = record(trained)
    with pytest.raises(SystemExit):
        run(*resume, "SOLVER.OPTIMIZER", "LAMB")
    with pytest.raises(SystemExit):
        run(*resume, "SOLVER.MAX_ITER", "9", "DATALOADER.MAPPER", "Nothing")
    assert record(trained) == before
    run("--resume", "SOLVER.MAX_ITER", "9")
    assert yaml.safe_load((trained / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 9


def test_untrained_evaluation_can_be_repeated(run, tmp_path) -> None:
    with pytest.raises(SystemExit):  # and one that failed leaves no trace
        run("--eval-only", "MODEL.WEIGHTS", "absent.pth")
    for _ in range(2):
        run("--eval-only", "--untrained", "MODEL.WEIGHTS", "absent.pth")
        assert (tmp_path / "out" / "results.json").is_file()
        assert not (tmp_path / "out" / "eval").exists()
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["MODEL"]["WEIGHTS"] == ""


# ---- names -----------------------------------------------------------------------------------
def folder_of(make_cfg, *opts, **options) -> str:
    cfg = evaluation_config(make_cfg("out", *opts), **options)
    assert cfg.is_frozen()
    top = Path(make_cfg("out").OUTPUT_DIR)
    return str(Path(cfg.OUTPUT_DIR).relative_to(top))


def test_names_differ_where_evaluations_do(make_cfg, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(make_cfg("out").dump())
    (tmp_path / "out" / "last_checkpoint").write_text("model_final.pth")
    own = ("MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth"))
    key = "TEST.PERSON_SEARCH.VARIANTS"
    assert folder_of(make_cfg, *own) == "."
    assert folder_of(make_cfg, untrained=True) == "eval/untrained"
    assert folder_of(make_cfg, *own, key, ["cws", "cbgm"]) == f"eval/{key}=cws,cbgm"
    assert folder_of(make_cfg, *own, key, ["cws+cbgm"]) == f"eval/{key}=cws+cbgm"
    others = [f"{x}/model_final.pth" for x in ("a", "b")]
    names = [folder_of(make_cfg, "MODEL.WEIGHTS", other) for other in others]
    long = [[f"cws+cbgm{'+gt' * 60}{i}"] for i in range(2)]
    names += [folder_of(make_cfg, *own, key, value) for value in long]
    names += [folder_of(make_cfg, *own, "DATASETS.TEST", (x,)) for x in ("a/b", "a:b")]
    assert len(set(names)) == 6 and max(map(len, names)) < 120


def test_a_config_of_an_older_version_and_a_broken_one(make_cfg, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "config.yaml"
    content = yaml.safe_load(make_cfg("out").dump())
    del content["TEST"]["PERSON_SEARCH"]["IOU_RULE"]
    content["REMOVED"] = 3
    path.write_text(yaml.safe_dump(content))
    own = ("MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth"))
    key = "TEST.PERSON_SEARCH.IOU_RULE"
    assert folder_of(make_cfg, *own) == "."
    assert folder_of(make_cfg, *own, key, "fixed") == f"eval/{key}=fixed"
    assert default_config().TEST.PERSON_SEARCH.IOU_RULE == "adaptive"
    path.write_text("A: [1\n")
    with pytest.raises(
        ValueError, match=r"config.yaml is not readable YAML: (.|\n)*another OUTPUT_DIR"
    ):
        folder_of(make_cfg, *own)


# ---- before the training ---------------------------------------------------------------------
def test_a_missing_protocol_ends_the_training_before_it_begins(make_cfg, dataset) -> None:
    def read():
        raise FileNotFoundError("TestG50.mat is missing")

    MetadataCatalog.get(dataset).search_protocols["broken"] = read
    cfg = make_cfg("out", "TEST.PERSON_SEARCH.PROTOCOLS", ["all", "broken"])
    with pytest.raises(DatasetError, match=f"TEST: '{dataset}' cannot.*: TestG50.mat is missing"):
        PersonSearchTrainer(cfg)


def test_two_processes_agree_on_the_folder_and_on_a_broken_test_set(make_cfg, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(make_cfg("out").dump())
    cfg = make_cfg("out", "SEED", 7, "MODEL.WEIGHTS", "a.pth", "DATASETS.TEST", ("prw_test",))
    with pytest.raises(SystemExit) as end:
        run_in_two_processes(evaluate_in_two_processes, cfg.dump(), str(tmp_path))
    assert end.value.code == 2
    shown = "".join((tmp_path / f"stderr{rank}").read_text() for rank in range(2))
    assert shown.count("error: DATASETS.TEST: 'prw_test' cannot be evaluated: ") == 1
    assert "(process" not in shown and "Traceback" not in shown
