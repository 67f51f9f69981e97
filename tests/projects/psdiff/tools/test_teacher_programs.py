# SPDX-License-Identifier: Apache-2.0
"""The teacher programs as a user runs them, and the commands that their messages recommend."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from programs import ROOT, run_program_file
from safetensors import safe_open

from person_search.data.synthetic import SyntheticConfig, write_cuhk_sysu, write_prw
from person_search.utils.weight_files import read_card


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two small drawn data sets, in an empty folder that the program is started in."""
    small = SyntheticConfig(
        train_images=8, test_images=8, train_ids=3, test_ids=2, width=160, height=120,
        people=(2, 3),
    )  # fmt: skip
    write_prw(tmp_path / "synthetic" / "PRW", small, progress=False)
    write_cuhk_sysu(tmp_path / "synthetic" / "CUHK-SYSU", small, progress=False)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.delenv("PERSON_SEARCH_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def common(repo_root):
    """Options of a small config on the first of the data sets, of random weights."""
    words = ["--config-file", str(repo_root / "configs/PSDiff/tiny/psdiff_slim_synthetic.yaml")]
    words += ["DATASETS.TRAIN", "('synthetic_prw_train',)"]
    words += ["DATASETS.TEST", "('synthetic_prw_test',)"]
    words += ["MODEL.WEIGHTS", "", "MODEL.PSDIFF.TEACHER.WEIGHTS", ""]
    return [*words, "MODEL.PSDIFF.TEACHER.MAX_ITER", "2", "OUTPUT_DIR", "out"]


@pytest.fixture
def start(data, capsys):
    """Runs a teacher program; returns its exit status and its output."""

    def start(script, *words):
        capsys.readouterr()
        status = run_program_file(f"projects/PSDiff/tools/{script}", *words)
        return status, capsys.readouterr()

    return start


@pytest.fixture
def run(start, common):
    return lambda script, *opts, flags=(): start(script, *flags, *common, *opts)


def test_scripts_train_embed_evaluate_and_report_errors_in_one_line(run, tmp_path):
    embeddings = str(tmp_path / "e.safetensors")
    keys = ["MODEL.PSDIFF.TEACHER.EMBEDDINGS", embeddings, "MODEL.PSDIFF.TEACHER.WEIGHTS"]
    for script in ("compute_embeddings.py", "evaluate_teacher.py"):
        code, output = run(script, *keys, str(tmp_path / "nothing.safetensors"))
        assert code == 2 and "nothing.safetensors', which is not a file" in output.err
        code, output = run(script, *keys, "")
        assert code == 2 and "MODEL.PSDIFF.TEACHER.WEIGHTS is empty" in output.err
    code, output = run("train_teacher.py", "MODEL.PSDIFF.TEACHER.NAME", "osnet")
    assert code == 2 and "NAME is 'osnet'; allowed: 'hhcl'" in output.err

    code, output = run("train_teacher.py", flags=["--resume"])
    assert code == 0 and "teacher.safetensors" in output.out
    start = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True)["model"]
    assert all(name.startswith("backbone.bottom_up.") for name in start)

    weights = str(tmp_path / "out" / "teacher.safetensors")
    card = read_card(weights)
    assert (card.method, card.kind, card.embed_dim) == ("hhcl teacher", "drawn", 128)
    assert read_card(tmp_path / "out" / "backbone.pth") == card
    assert run("compute_embeddings.py", *keys, weights)[0] == 0
    with safe_open(embeddings, framework="numpy") as file:
        assert file.get_tensor("embeddings").shape[1:] == (2, 128)

    assert run("evaluate_teacher.py", *keys, weights)[0] == 0
    results = tmp_path / "out" / "inference_teacher" / "synthetic_prw_test_results.json"
    assert '"mAP"' in results.read_text()


# ---- one folder for each teacher -----------------------------------------------------------------


def test_the_weights_say_what_they_are_of_and_the_config_lies_beside_them(run, tmp_path):
    assert run("train_teacher.py")[0] == 0
    with safe_open(tmp_path / "out" / "teacher.safetensors", framework="numpy") as file:
        meta = file.metadata()
    assert meta["dataset"] == "synthetic_prw_train" and meta["teacher"] == "hhcl"
    assert len(meta["boxes_hash"]) == len(meta["teacher_hash"]) == 16
    assert "synthetic_prw_train" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (("DATASETS.TRAIN", "('synthetic_cuhk_sysu_train',)"), "hhcl_synthetic_cuhk_sysu_train"),
        (("MODEL.PSDIFF.TEACHER.NAME", "s_reid"), "s_reid_synthetic_prw_train"),
    ],
)
@pytest.mark.parametrize("left", ["teacher.safetensors", "teacher_checkpoints"])
def test_another_teacher_in_the_folder_is_not_overwritten(run, tmp_path, keys, text, left):
    assert run("train_teacher.py")[0] == 0
    out, kept = tmp_path / "out", tmp_path / "kept"
    (out / left).rename(kept)
    for path in (out / "teacher.safetensors", out / "teacher_checkpoints" / "source.json"):
        path.unlink(missing_ok=True)  # the one that is not kept
    kept.rename(out / left)
    before = {path: path.read_bytes() for path in out.rglob("*.[sp][at][fh]*")}
    for flags in ((), ("--resume",)):
        status, shown = run("train_teacher.py", *keys, flags=flags)
        assert status == 2 and "Traceback" not in shown.err
        assert "belongs to teacher 'hhcl' of data set 'synthetic_prw_train'" in shown.err
        assert f"OUTPUT_DIR output/teacher/{text}, or remove the old one" in shown.err
    assert before and before == {path: path.read_bytes() for path in before}


def test_weights_that_do_not_say_what_they_are_of_are_not_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "teacher.safetensors").write_bytes(b"other")
    status, shown = run("train_teacher.py")
    assert status == 2 and "does not state what it was trained on" in shown.err
    assert (tmp_path / "out" / "teacher.safetensors").read_bytes() == b"other"


def test_a_teacher_of_another_data_set_embeds_with_a_warning(run, tmp_path):
    assert run("train_teacher.py")[0] == 0
    keys = ["MODEL.PSDIFF.TEACHER.EMBEDDINGS", "e.safetensors", "OUTPUT_DIR", "other"]
    keys += ["MODEL.PSDIFF.TEACHER.WEIGHTS", "out/teacher.safetensors"]
    said = "was trained on 'synthetic_prw_train'"
    assert run("compute_embeddings.py", *keys)[0] == 0
    assert said not in (tmp_path / "other" / "log.txt").read_text()
    keys += ["DATASETS.TRAIN", "('synthetic_cuhk_sysu_train',)"]
    assert run("compute_embeddings.py", *keys)[0] == 0
    assert said in (tmp_path / "other" / "log.txt").read_text()


def test_partial_loading_is_refused_or_allowed_by_its_key(run, tmp_path):
    assert run("train_teacher.py")[0] == 0
    path = tmp_path / "out" / "teacher_checkpoints" / "model_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["model"]["net.project.weight"]
    torch.save(checkpoint, path)
    status, shown = run("train_teacher.py", flags=["--resume"])
    assert status == 2 and "set MODEL.ALLOW_PARTIAL_LOAD True" in shown.err
    allowed = ("MODEL.ALLOW_PARTIAL_LOAD", "True")
    assert run("train_teacher.py", *allowed, flags=["--resume"])[0] == 0


@pytest.mark.parametrize("program", ["train_teacher.py", "compute_embeddings.py"])
def test_an_output_that_is_not_writable_is_one_message(run, tmp_path, program):
    """A file in place of the output folder, and of the folder of the embeddings."""
    (tmp_path / "file").write_text("occupied")
    weights = "projects/PSDiff/weights/teacher_slim_synthetic.safetensors"
    keys = ["MODEL.PSDIFF.TEACHER.WEIGHTS", str(ROOT / weights)]
    places = [("OUTPUT_DIR", "file")]
    if program == "compute_embeddings.py":
        places.append(("MODEL.PSDIFF.TEACHER.EMBEDDINGS", "file/e.safetensors"))
    for place in places:
        status, shown = run(program, *keys, *place)
        assert status == 2 and "Traceback" not in shown.err and "file" in shown.err
    assert (tmp_path / "file").read_text() == "occupied"


def test_one_truncated_image_is_named_or_skipped(run, tmp_path):
    image = min(tmp_path.glob("synthetic/PRW/frames/*.jpg"))
    os.truncate(image, image.stat().st_size // 2)
    skip, found = ("DATALOADER.ON_BAD_IMAGE", "skip"), 0
    keys = ["MODEL.PSDIFF.TEACHER.EMBEDDINGS", "e.safetensors"]
    keys += ["MODEL.PSDIFF.TEACHER.WEIGHTS", "out/teacher.safetensors"]
    # the first image belongs to the training set or to the test set
    assert run("train_teacher.py", *skip)[0] == 0
    for program in ("train_teacher.py", "compute_embeddings.py", "evaluate_teacher.py"):
        extra = () if program == "train_teacher.py" else keys
        status, shown = run(program, *extra)
        assert status in (0, 2)
        if status == 2:
            found += 1
            assert image.name in shown.err and "Traceback" not in shown.err
            assert run(program, *extra, *skip)[0] == 0
    assert found > 0


# ---- the command line is that of the other programs ----------------------------------------------


@pytest.mark.parametrize(
    "script", ["train_teacher.py", "compute_embeddings.py", "evaluate_teacher.py"]
)
def test_wrong_arguments_end_with_a_message(run, script, tmp_path):
    (tmp_path / "w.safetensors").touch()
    for words, text in (
        (("MODEL.PSDIFF.STEPSS", "2"), "Did you mean MODEL.PSDIFF.STEPS?"),
        (("MODEL.DEVICE", "cuda"), "Add --num-gpus 0 (or MODEL.DEVICE cpu)"),
    ):
        status, shown = run(script, *words)
        assert status == 2 and text in shown.err and "Traceback" not in shown.err
        assert "--traceback" in shown.err
    status, shown = run(script, flags=["--num-gpus", "4"])
    assert status == 2 and "argument --num-gpus: invalid choice: 4" in shown.err


def test_an_unknown_data_set_is_a_message_or_a_traceback(run):
    unknown = ("DATASETS.TRAIN", "('nowhere_train',)")
    status, shown = run("train_teacher.py", *unknown)
    assert status == 2 and "nowhere_train" in shown.err and "Traceback" not in shown.err
    with pytest.raises(KeyError, match="nowhere_train"):
        run("train_teacher.py", *unknown, flags=["--traceback"])


def test_the_cpu_is_chosen_as_in_the_other_programs(run):
    assert run("train_teacher.py", "MODEL.DEVICE", "cuda", flags=["--num-gpus", "0"])[0] == 0


def test_warnings_of_libraries_are_not_shown(data, common, repo_root, child_env):
    script = str(repo_root / "projects/PSDiff/tools/train_teacher.py")
    child_env["PYTHONPATH"] = ":".join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, script, *common, "MODEL.PSDIFF.TEACHER.NAME", "osnet"],
        env=child_env, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2 and "allowed: 'hhcl'" in run.stderr
    assert "Warning" not in run.stderr


# ---- what a message advises works ----------------------------------------------------------------


def commands_in(text):
    """Returns the words of the commands in a message, each on its own line."""
    lines = re.findall(r"^ +python projects/PSDiff/tools/(.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def train(train_net, words, capsys):
    capsys.readouterr()
    status = 0
    try:
        train_net.main(["--num-gpus", "0", *words])
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr()


@pytest.mark.parametrize("empty", [False, True])
def test_the_commands_for_missing_embeddings_can_be_pasted(
    start, common, train_net, capsys, monkeypatch, tmp_path, empty
):
    keys = ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"]
    keys += ["DATASETS.TEST", "()", "MODEL.PSDIFF.NUM_PROPOSALS", "4"]
    file = "output/teacher/hhcl_synthetic_prw_train/embeddings.safetensors"
    words = [*common, *keys, "MODEL.PSDIFF.TEACHER.EMBEDDINGS", "" if empty else file]
    status, shown = train(train_net, words, capsys)
    assert status == 2 and "which is not a file. Write it with" in shown.err
    assert (f"set the key to '{file}' here, too" in shown.err) is empty
    assert not (tmp_path / "out").exists()  # neither a log nor a config: nothing was begun
    commands = commands_in(shown.err)
    assert [command[0] for command in commands] == ["train_teacher.py", "compute_embeddings.py"]
    assert start(*commands[0])[0] == 0
    status, shown = train(train_net, words, capsys)
    assert commands_in(shown.err) == commands[1:]  # what is done is not asked for again
    assert start(*commands[1])[0] == 0
    status, shown = train(train_net, [*words, "MODEL.PSDIFF.TEACHER.EMBEDDINGS", file], capsys)
    assert status == 0, shown.err


def test_missing_embeddings_are_told_before_missing_data(common, train_net, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    status, shown = train(train_net, common, capsys)
    assert status == 2 and "which is not a file. Write it with" in shown.err
    assert "/nowhere" not in shown.err and "Loading" not in shown.out


def test_a_teacher_that_is_there_is_not_trained_again(start, common, train_net, capsys, tmp_path):
    assert start("train_teacher.py", *common)[0] == 0
    weights = ["MODEL.PSDIFF.TEACHER.WEIGHTS", "out/teacher.safetensors"]
    status, shown = train(train_net, [*common, *weights], capsys)
    (command,) = commands_in(shown.err)
    assert status == 2 and command[0] == "compute_embeddings.py"
    assert start(*command)[0] == 0
    assert (tmp_path / "output" / "demo" / "embeddings.safetensors").is_file()


def test_embeddings_of_another_data_set_are_told_with_commands(
    start, common, train_net, capsys, tmp_path
):
    other = ["DATASETS.TRAIN", "('synthetic_cuhk_sysu_train',)"]
    assert start("train_teacher.py", *common, *other)[0] == 0
    weights = ["MODEL.PSDIFF.TEACHER.WEIGHTS", "out/teacher.safetensors"]
    assert start("compute_embeddings.py", *common, *other, *weights)[0] == 0
    status, shown = train(train_net, [*common, "OUTPUT_DIR", "run"], capsys)
    assert status == 2 and "was written for data set 'synthetic_cuhk_sysu_train'" in shown.err
    for command in commands_in(shown.err):
        assert command[1:3] == common[:2]
        assert start(*command)[0] == 0
    keys = ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"]
    keys += ["DATASETS.TEST", "()", "OUTPUT_DIR", "run"]
    assert train(train_net, [*common, *keys], capsys)[0] == 0
