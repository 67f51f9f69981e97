# SPDX-License-Identifier: Apache-2.0
"""TwoStage through train_net.py and person-search, from weights of its parts in local files."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from json_trees import write_json_set
from twostage_tiny import tiny_cfg

from person_search.evaluation import read_predictions
from person_search.search.cli import main as search_main

TEST = "MODEL.TWO_STAGE."


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with a config, the weights of two parts, and a small data set."""
    folder = tmp_path_factory.mktemp("twostage")
    write_json_set(folder / "data")
    torch.manual_seed(0)
    model = build_model(tiny_cfg())
    torch.save(model.detector.net.state_dict(), folder / "detector.pth")
    torch.save(model.reid.net.state_dict(), folder / "reid.pth")
    cfg = tiny_cfg(
        DETECTOR_WEIGHTS=str(folder / "detector.pth"),
        REID_WEIGHTS=str(folder / "reid.pth"),
        PROJECT=False,
        MAX_DETECTIONS=5,
    )
    cfg.MODEL.REID.NUM_PIDS = 0
    cfg.DATASETS.PERSON_SEARCH_JSON = [("own", "set.json")]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("own",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 2, (1,)
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.0
    cfg.TEST.PERSON_SEARCH.DUMP_PREDICTIONS = True
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def test_evaluation_with_the_weights_of_the_parts(parts, train_net, tmp_path, monkeypatch) -> None:
    """Then the same detections with other embeddings, and a training that starts from the parts."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(parts / "data"))
    base = ["--config-file", str(parts / "config.yaml"), "--num-gpus", "0"]

    def run(name: str, *words: str) -> Path:
        options = [word for word in words if word.startswith("--")]
        keys = [word for word in words if not word.startswith("--")]
        assert train_net.main([*base, *options, *keys, "OUTPUT_DIR", str(tmp_path / name)]) in (
            0,
            None,
        )
        return tmp_path / name

    first = run("first", "--eval-only")
    found = read_predictions(first / "inference" / "own_predictions.npz")
    results = json.loads((first / "results.json").read_text())
    assert len(found.boxes) == 20 and found.embed_dim == 1280 and "mAP" in results["search"]

    file = f"predictions/{first}/inference/own_predictions.npz"
    other = run("other", "--eval-only", f"{TEST}DETECTOR", file, f"{TEST}REID", "timm/resnet18",
                f"{TEST}REID_WEIGHTS", str(resnet18(tmp_path)))  # fmt: skip
    again = read_predictions(other / "inference" / "own_predictions.npz")
    torch.testing.assert_close(torch.tensor(again.boxes), torch.tensor(found.boxes))
    assert (again.scores == found.scores).all() and again.embed_dim == 512

    trained = run("trained", f"{TEST}PROJECT", "True", f"{TEST}TRAIN_DETECTOR", "False")
    weights = torch.load(trained / "model_final.pth")["model"]
    start = torch.load(parts / "detector.pth")
    assert all(torch.equal(weights[f"detector.net.{k}"], v) for k, v in start.items())
    assert not torch.equal(weights["reid.net.conv_stem.weight"],
                           torch.load(parts / "reid.pth")["conv_stem.weight"])  # fmt: skip
    resumed = run("trained", "--eval-only", "--resume", f"{TEST}PROJECT", "True")
    assert json.loads((resumed / "results.json").read_text())["search"]


def resnet18(folder: Path) -> Path:
    import timm

    torch.save(timm.create_model("resnet18").state_dict(), folder / "resnet18.pth")
    return folder / "resnet18.pth"


def test_search_with_the_weights_of_the_parts(parts, tmp_path, capsys) -> None:
    """No --weights; another file of one part is another model."""
    model = ["--config-file", str(parts / "config.yaml")]
    images, gallery = str(parts / "data" / "a"), ["--gallery", str(tmp_path / "g")]
    assert search_main(["index", *gallery, "--source", images, *model]) == 0
    query = ["--query", f"{images}/1.jpg", "--box", "10", "5", "30", "65", "--output"]
    assert search_main(["query", *gallery, *query, str(tmp_path / "found"), *model]) == 0
    lines = (tmp_path / "found" / "results.jsonl").read_text().splitlines()
    assert lines and json.loads(lines[0])

    other = torch.load(parts / "reid.pth")
    other["conv_stem.weight"] += 0.1
    torch.save(other, tmp_path / "other.pth")
    capsys.readouterr()
    for weights, message in (
        (str(tmp_path / "other.pth"), "made by another model"),
        ("", "no weights are given (--weights, or MODEL.TWO_STAGE.REID_WEIGHTS in the config)"),
    ):
        with pytest.raises(SystemExit) as error:
            search_main(["query", *gallery, *query, str(tmp_path / "no"), *model,
                         f"{TEST}REID_WEIGHTS", weights])  # fmt: skip
        assert error.value.code == 2 and message in capsys.readouterr().err
