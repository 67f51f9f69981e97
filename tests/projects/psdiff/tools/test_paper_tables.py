# SPDX-License-Identifier: Apache-2.0
"""The tables of the paper: their commands, run at tiny size, and the resulting document."""

import json
import re
import shlex
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from programs import load_program, run_program_file
from psdiff_tiny import PAPER_KEYS

from person_search.config import build_config
from person_search.data.synthetic import SyntheticConfig, write_prw

ROOT = Path(__file__).resolve().parents[4]
DOCUMENT = ROOT / "docs" / "results_psdiff.md"
TINY = [
    *PAPER_KEYS,
    *shlex.split("SOLVER.MAX_ITER 1 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2"),
    *shlex.split("DATALOADER.NUM_WORKERS 0 TEST.PERSON_SEARCH.SCORE_THRESH 0.0"),
]


@pytest.fixture(scope="module")
def tool():
    return load_program("projects/PSDiff/tools/paper_tables.py")


@pytest.fixture
def run_main(tool, capsys):
    """Runs the tool; returns what it printed."""

    def run_main(*words: str) -> str:
        capsys.readouterr()
        assert tool.main(words) == 0
        return capsys.readouterr().out

    return run_main


# ---- rows ----------------------------------------------------------------------------------------


def test_the_document_holds_the_tables_of_the_tool(tool, tmp_path) -> None:
    text = DOCUMENT.read_text()
    tables = tool.all_tables(tool.read_results(tmp_path))
    assert [match[2] for match in tool.BLOCK.finditer(text)] == list(tables)
    assert tool.with_tables(text, tables) == text, (
        "python projects/PSDiff/tools/paper_tables.py --update"
    )


def test_every_row_has_a_config_and_every_ablation_of_a_table_a_row(tool) -> None:
    trainings = {run.training for run in tool.evaluations(list(tool.NUMBERS))}
    configs = {training.config for training in trainings}
    folder = ROOT / "configs" / "PSDiff"
    assert all((folder / f"{config}.yaml").is_file() for config in configs)
    made = {f"ablations/{path.stem}" for path in (folder / "ablations").glob("table*.yaml")}
    assert made - configs == {"ablations/table4c_skip"}  # ours, in addition to the paper's two
    assert len({training.name for training in trainings}) == len(trainings)  # folders


def test_the_grid_of_table_4a(tool) -> None:
    (table,) = (table for table in tool.TABLES if table.number == "IV a")
    commands = tool.Commands(Path("out"), 0)
    names = set()
    for s1, (label, cells) in enumerate(table.rows, start=1):
        assert label == f"s1 = {s1}" and len(cells) == 4
        for s2, (_, run) in enumerate(cells, start=1):
            psdiff = commands.config(run.training).MODEL.PSDIFF
            assert (psdiff.SNR_BOX, psdiff.SNR_REID) == (s1, s2)
            scales = f"MODEL.PSDIFF.SNR_BOX {s1}.0 MODEL.PSDIFF.SNR_REID {s2}.0"
            for step in (commands.of_training(run.training), commands.of_evaluation(run)):
                assert (scales in step.command) == ((s1, s2) != (2, 3))
            names.add(run.training.name)
    assert len(names) == 16 and "table4a_s1_1_s2_1" in names


def test_values_of_one_run_agree_in_the_paper(tool) -> None:
    papers: dict = {}
    for table in tool.TABLES:  # figures have other metrics
        for _, cells in table.rows:
            for cell in cells:
                papers.setdefault(cell.ours, []).append(cell.paper)
    shared = [values for values in papers.values() if len(values) > 1]
    assert max(map(len, shared)) == 6  # 8 steps on CUHK-SYSU: I, IV a, IV b, IV c, V and VI
    for values in shared:
        longest = max(values, key=len)
        assert all(longest.startswith(value) for value in values), values


def without_place(cfg: CfgNode) -> str:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    return cfg.dump()


def test_no_two_configs_train_the_same(tool) -> None:
    """Rows share a training by naming it; a copy would be trained twice."""
    configs = tool.Commands(Path("out"), 0).config
    runs = sorted({run.training for run in tool.evaluations(list(tool.NUMBERS))})
    seen: dict = {}
    for training in runs:
        same = seen.setdefault(without_place(configs(training)), training)
        assert same == training, f"{training} and {same}"


LABELS = {"hhcl": "HHCL", "s_reid": "S-ReID", "mgn": "MGN", "agw": "AGW", "pplr": "PPLR"}


def test_a_teachers_config_and_its_rows_agree(tool) -> None:
    configs = tool.Commands(Path("out"), 0).config
    for name in LABELS:
        teacher = configs(tool.Training(f"teachers/{name}")).MODEL.PSDIFF.TEACHER
        (cells,) = (cells for label, cells in tool.TABLES[-1].rows if label == LABELS[name])
        for _, run in cells:
            assert configs(run.training).MODEL.PSDIFF.TEACHER == teacher, run


def test_parameters_of_table_2_are_those_of_the_config(tool, tmp_path) -> None:
    path = ROOT / "configs" / "PSDiff" / f"{tool.COST_CONFIGS['r50']}.yaml"
    model = build_model(build_config(path, ["MODEL.DEVICE", "cpu"]))
    count = sum(p.numel() for p in model.parameters())
    assert tool.read_results(tmp_path)["cost"]["r50"]["parameters"] == count
    assert f"| 31 M | {count / 1e6:.2f} M |" in DOCUMENT.read_text()


# ---- commands ------------------------------------------------------------------------------------


def test_every_training_and_evaluation_is_commanded_once(tool, tmp_path) -> None:
    steps = tool.Commands(tmp_path, 4).of_tables(list(tool.NUMBERS))
    trainings = [s for s in steps if "train_net.py --resume" in s.command]
    evaluations = [s for s in steps if "--eval-only" in s.command]
    runs = set(tool.evaluations(list(tool.NUMBERS)))
    assert len(trainings) == len({run.training for run in runs}) == 33
    assert len(evaluations) == len(runs) == len({s.done for s in evaluations})
    teachers = [s for s in steps if "train_teacher.py" in s.command]
    assert len(teachers) == 6  # HHCL on both data sets, four others on CUHK-SYSU
    order = [s.command.split()[1] for s in steps]
    assert order.index("train_net.py") > max(
        i for i, script in enumerate(order) if script.startswith("projects/")
    )


def test_finished_runs_are_omitted(tool, tmp_path, run_main) -> None:
    words = ["--commands", "--output", str(tmp_path), "--tables", "V", "--num-gpus", "2"]
    first = run_main(*words).splitlines()
    assert first[0] == "# 0 of 15 are finished" and len(first) == 16
    assert all("--num-gpus 2" in line for line in first if "train_net" in line)
    done = tmp_path / "psdiff_r50_fpn_cuhk_sysu" / "steps2_dpmsolver++" / "results.json"
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({"search": {"mAP": 92.84, "top1": 93.06}}))
    second = run_main(*words).splitlines()
    assert second[0] == "# 1 of 15 are finished" and set(first[1:]) - set(second[1:]) == {
        line for line in first if str(done.parent) in line
    }
    table = run_main("--output", str(tmp_path), "--tables", "V")
    assert "| DPM-Solver++ | 90.8 |  | 92.5 | 92.8 | 94.8 |  |" in table
    assert "Table IV" not in table


def test_figures_4_and_5(tool, tmp_path, run_main) -> None:
    words = ["--output", str(tmp_path), "--tables", "Fig. 4", "Fig. 5"]
    printed = run_main("--commands", *words)
    galleries = "['g100', 'g50', 'g500', 'g1000', 'g2000', 'g4000']"
    (line,) = (line for line in printed.splitlines() if "PROTOCOLS" in line)
    assert (
        shlex.split(line)[shlex.split(line).index("TEST.PERSON_SEARCH.PROTOCOLS") + 1] == galleries
    )
    assert [f"STEPS {steps} " in printed for steps in range(1, 9)] == [True] * 8
    done = tmp_path / "psdiff_r50_fpn_cuhk_sysu" / "steps8_ddim" / "results.json"
    done.parent.mkdir(parents=True)
    results = {"search": {"mAP": 94.04, "top1": 95.0}, "detection": {"AP50": 85.51}}
    results["search_g4000"] = {"mAP": 80.26, "top1": 82.0}
    done.write_text(json.dumps(results))
    tables = run_main(*words)
    assert "| PSDiff | – |  | 95.1 | 94.0 | – |  | – |  | – |  | – | 80.3 |" in tables
    assert "| 8 | 85.7 | 85.5 | 95.1 | 94.0 |" in tables and "| 7 | – |  | – |  |" in tables


def test_results_are_stored_with_update(tool, tmp_path, run_main, monkeypatch) -> None:
    record, document = tmp_path / "record.json", tmp_path / "results.md"
    record.write_text(tool.RECORD.read_text())
    marker = "<!-- projects/PSDiff/tools/paper_tables.py: Table III -->"
    document.write_text(f"before\n{marker}\nold\n<!-- end -->\nbehind\n")
    monkeypatch.setattr(tool, "RECORD", record)
    monkeypatch.setattr(tool, "DOCUMENT", document)
    found = tmp_path / "out" / "psdiff_r50_fpn_prw" / "steps8_ddim_cuhk_sysu_test"
    found.mkdir(parents=True)
    (found / "results.json").write_text(json.dumps({"search": {"mAP": 58.04, "top1": 63.0}}))
    run_main("--output", str(tmp_path / "out"), "--update")
    expected = "| PRW → CUHK-SYSU | 58.2 / 63.7 | 58.0 / 63.0 | `paper/psdiff_r50_fpn_prw` |"
    text = document.read_text()
    assert expected in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("behind\n")
    assert expected in run_main("--output", str(tmp_path / "elsewhere"))


def test_commands_make_the_table(tool, tmp_path, monkeypatch, run_main) -> None:
    """Teacher, embeddings, training and evaluation of one row, as printed, on tiny models."""
    small = SyntheticConfig(
        train_images=6, test_images=6, train_ids=3, test_ids=2, width=96, height=72,
        people=(2, 3),
    )  # fmt: skip
    write_prw(tmp_path / "PRW", small, progress=False)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = ["--tables", "I", "--output", "out"]
    printed = run_main("--commands", "--num-gpus", "0", *words, *TINY).splitlines()
    wanted = [line for line in printed if "psdiff_r50_fpn_prw" in line][:4]
    assert [re.search(r"(\w+)\.py", line)[1] for line in wanted] == [
        "train_teacher", "compute_embeddings", "train_net", "train_net",
    ]  # fmt: skip
    for line in wanted:
        _, script, *options = shlex.split(line)
        assert run_program_file(script, *options) == 0, line
    result = json.loads(Path("out/psdiff_r50_fpn_prw/steps1_ddim/results.json").read_text())
    ours = f"{result['search']['mAP']:.1f} / {result['search']['top1']:.1f}"
    row = next(line for line in run_main(*words).splitlines() if line.startswith("| R50, 1 |"))
    assert row.split(" | ")[1:5] == ["90.8 / 92.1", "", "49.9 / 80.4", ours]
    assert "# 4 of" in run_main("--commands", "--num-gpus", "0", *words, *TINY)
