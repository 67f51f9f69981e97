# SPDX-License-Identifier: Apache-2.0
"""train_net.py, in this process and as the command that users type."""

import json
import subprocess
import sys
import tomllib

import pytest
import torch
import yaml
from tiny_runs import run_train_net
from two_processes import run_in_two_processes

DATASET = "tiny_for_engine_tests"


def test_train_evaluate_and_resume(run, caplog) -> None:
    folder = run("SOLVER.MAX_ITER", "7")
    trained = json.loads((folder / "results.json").read_text())
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["MODEL"]["REID"]["NUM_PIDS"] == 3
    assert "total_loss" in (folder / "metrics.json").read_text()

    (folder / "results.json").unlink()
    run("--eval-only", "MODEL.WEIGHTS", str(folder / "model_final.pth"))
    assert json.loads((folder / "results.json").read_text()) == trained

    (folder / "results.json").unlink()
    run("--eval-only", "--resume")
    assert json.loads((folder / "results.json").read_text()) == trained

    run("--resume", "SOLVER.MAX_ITER", "10")
    content = torch.load(folder / "model_final.pth", weights_only=True)
    assert content["iteration"] == 9


def test_expected_results_are_verified(run) -> None:
    with pytest.raises(SystemExit) as end:
        run(
            "--eval-only", "--untrained", "TEST.EXPECTED_RESULTS", "[['search', 'mAP', 200.0, 1.0]]"
        )
    assert end.value.code == 1


def test_an_unreadable_image_is_one_message(run, tmp_path, capfd) -> None:
    (tmp_path / "images" / "s3.jpg").write_bytes(b"no image")
    for workers in ("0", "1"):
        with pytest.raises(SystemExit) as end:
            run("DATALOADER.NUM_WORKERS", workers)
        assert end.value.code == 2
        shown = "".join(capfd.readouterr())
        assert "error: cannot read the image" in shown and "s3.jpg" in shown
        assert "Traceback" not in shown
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()
    run("DATALOADER.ON_BAD_IMAGE", "skip")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["SOLVER.MAXITER", "6"], "Did you mean SOLVER.MAX_ITER?"),
        (["MODEL.WEIGHTS", "absent.pth"], "no weight file 'absent.pth'"),
        (["--eval-only", "MODEL.WEIGHTS", "absent.pth"], "no weight file 'absent.pth'"),
        (["--eval-only"], "MODEL.WEIGHTS is empty, so there is nothing to evaluate"),
        (["--eval-only", "--resume"], "--eval-only --resume: there is no checkpoint in"),
        (["--eval-only", "--resume", "--untrained"], "contradict each other"),
        (["--untrained"], "--untrained requires --eval-only"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "3"], "must divide SOLVER.IMS_PER_BATCH (2)"),
        (["MODEL.META_ARCHITECTURE", "TinyPersonSerch"], "Did you mean TinyPersonSearch?"),
        (["DATASETS.TRAIN", "mine"], "Write DATASETS.TRAIN \"('mine',)\""),
        (["DATASETS.TEST", "('prw_tset',)"], "Did you mean prw_test? Available: cuhk_sysu_test,"),
        (["DATASETS.TEST", "('prw_tset',)"], "DATASETS.PERSON_SEARCH_JSON adds your own"),
        (["DATASETS.TEST", "('prw_test',)"], "DATASETS.TEST: 'prw_test' cannot be evaluated: "),
        (
            ["--eval-only", "--untrained", "DATASETS.TEST", f"('{DATASET}','prw_test')"],
            "DATASETS.TEST: 'prw_test' cannot be evaluated: ",
        ),
        (["TEST.PERSON_SEARCH.PROTOCOLS", "['g50']"], "has no search protocol ['g50']"),
        (["MODEL.REID.NUM_PIDS", "7"], "NUM_PIDS is 7, but tiny_for_engine_tests has 3"),
        (["DATASETS.TRAIN", "('prw_train',)"], "PRW"),
        (["DATASETS.TRAIN", "('cuhk_train',)"], "cuhk_train"),
        (["SOLVER.OPTIMIZER", "LAMB"], "SOLVER.OPTIMIZER is 'LAMB'"),
        (["DATALOADER.MAPPER", "Nothing"], "DATALOADER.MAPPER is 'Nothing'"),
        (["OUTPUT_DIR", "/dev/null"], "OUTPUT_DIR '/dev/null' cannot be created: File exists"),
        (["OUTPUT_DIR", "/dev/null/x"], "cannot be created: Not a directory. Set OUTPUT_DIR"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR '' cannot be created"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD is 0; it must be at least 1"),
        (["DATALOADER.NUM_WORKERS", "-1"], "DATALOADER.NUM_WORKERS is -1; it must be at least 0"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)
def test_usage_errors_are_one_message(run, capsys, monkeypatch, tmp_path, arguments, text) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "no_datasets"))
    monkeypatch.delenv("PERSON_SEARCH_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert text in message and "error: " in message
    assert "Traceback" not in message
    # nothing has begun, so nothing is on record
    names = {path.name for path in tmp_path.glob("out/**/*")}
    assert not names & {"config.yaml", "results.json"}


def test_weights_of_another_architecture(run, tmp_path, capsys) -> None:
    path = tmp_path / "other.pth"
    torch.save({"model": torch.nn.LSTM(2, 2).state_dict()}, path)
    with pytest.raises(SystemExit):
        run("--eval-only", "MODEL.WEIGHTS", str(path))
    assert "is for another architecture" in capsys.readouterr().err


def test_a_method_of_another_package(make_cfg, train_net, tmp_path, monkeypatch, repo_root) -> None:
    """dev/check_packaging.sh installs it beside the wheel."""
    package = repo_root / "tests" / "helpers" / "example_method"
    points = tomllib.loads((package / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "example_method-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-method\nVersion: 0.1.0\n")
    lines = [f"[{group}]\n{name} = {value}\n" for group, names in points.items()
             for name, value in names.items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines))
    for folder in (tmp_path, package):
        monkeypatch.syspath_prepend(folder)
    options = ["--num-gpus", "0", "--config-file", str(package / "example.yaml")]
    data = make_cfg().DATASETS
    options += ["DATASETS.TRAIN", str(data.TRAIN), "DATASETS.TEST", str(data.TEST)]
    options += ["OUTPUT_DIR", str(tmp_path / "out"), "TEST.PERSON_SEARCH.PROTOCOLS", "()"]
    assert train_net.main(options) == 0
    assert set(json.loads((tmp_path / "out/results.json").read_text())) >= {"detection", "search"}
    weights = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    assert "classify.weight" in weights


# ---- several processes -----------------------------------------------------------------------
def test_two_processes_on_a_cpu(config, tmp_path) -> None:
    images = str(tmp_path / "images")
    options = ["--num-gpus", "0", "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "1"]
    run_in_two_processes(run_train_net, DATASET, images, ["--config-file", config, *options])
    folder = tmp_path / "out"
    content = torch.load(folder / "model_final.pth", weights_only=True)
    assert content["iteration"] == 1
    assert len(content["trainer"]["hooks"]["ResumableCheckpointer"]["rng"]) == 2
    assert set(json.loads((folder / "results.json").read_text())) >= {"detection", "search"}
    assert "World size: 2" in (folder / "log.txt").read_text()
    assert (folder / "log.txt.rank1").is_file()


def test_the_command_starts_its_processes(config, child_env, repo_root) -> None:
    """Each of them finds that the model of the config is not installed."""
    command = [sys.executable, "train_net.py", "--config-file", config, "--num-gpus", "0"]
    result = subprocess.run(
        [*command, "--num-processes", "2"], env=child_env, cwd=repo_root, capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert "unknown MODEL.META_ARCHITECTURE 'TinyPersonSearch'" in result.stderr
    assert "(process " in result.stderr and "Traceback" not in result.stderr
