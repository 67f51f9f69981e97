# SPDX-License-Identifier: Apache-2.0
"""A teacher on ground-truth boxes: an oracle is perfect, the kept weights are far above chance."""

import pytest
import torch
from detectron2.data import DatasetCatalog

from person_search.config import build_config
from person_search.data import register_prw
from person_search.data.synthetic import SyntheticConfig, write_prw
from person_search.evaluation import PersonSearchEvaluator, chance_level
from psdiff.teachers.evaluate import boxes_and_queries, embed_test_set, evaluate_on_ground_truth
from psdiff.teachers.registry import load_trained_teacher

NAME = "teacher_evaluation"


@pytest.fixture(scope="module")
def test_set(tmp_path_factory):
    """Name of a drawn test set of 24 scenes, registered as PRW."""
    root = tmp_path_factory.mktemp("drawn")
    small = SyntheticConfig(
        seed=3, train_images=4, test_images=24, train_ids=2, test_ids=8, people=(2, 4),
    )  # fmt: skip
    write_prw(root, small, progress=False)
    register_prw(NAME, str(root))
    return f"{NAME}_test"


def evaluate(name, records, feats):
    evaluator = PersonSearchEvaluator(name)
    return evaluate_on_ground_truth(evaluator, records, feats), evaluator


def oracle(records):
    """One-hot embeddings of identities; everybody without one is alike."""
    ids = {a["person_id"] for r in records for a in r["annotations"]}
    axes = dict(zip(sorted(ids), torch.eye(len(ids)), strict=True))
    for record in records:
        persons = {tuple(a["bbox"]): a["person_id"] for a in record["annotations"]}
        pids = [persons[tuple(box)] for box in boxes_and_queries(record)]
        yield torch.stack([axes[pid] for pid in pids]) if pids else torch.zeros(0, len(ids))


def test_an_oracle_is_perfect(test_set):
    records = DatasetCatalog.get(test_set)
    results, _ = evaluate(test_set, records, oracle(records))
    assert results["search"]["mAP"] == results["search"]["top1"] == pytest.approx(100.0)
    assert results["detection"]["recall"] == results["detection"]["AP"] == pytest.approx(100.0)


def test_an_oracle_that_swaps_two_scenes_is_not(test_set):
    records = DatasetCatalog.get(test_set)
    feats = list(oracle(records))
    same_count = {}
    for index, scene in enumerate(feats):
        other = same_count.setdefault(len(scene), index)
        if other != index and not torch.equal(scene, feats[other]):
            feats[index], feats[other] = feats[other], feats[index]
            break
    results, _ = evaluate(test_set, records, feats)
    assert results["search"]["mAP"] < 99.0


def test_the_kept_teacher_is_far_above_chance(test_set, repo_root):
    cfg = build_config(
        repo_root / "configs/PSDiff/tiny/psdiff_slim_synthetic.yaml",
        [
            "MODEL.PSDIFF.TEACHER.WEIGHTS",
            str(repo_root / "projects/PSDiff/weights/teacher_slim_synthetic.safetensors"),
        ],
    )
    records = DatasetCatalog.get(test_set)
    net = load_trained_teacher(cfg)
    results, evaluator = evaluate(test_set, records, embed_test_set(net, records, cfg))
    chance = chance_level(evaluator.protocol("all"), evaluator.predictions)
    assert results["search"]["mAP"] > 2.5 * chance["mAP"]
    assert results["search"]["top1"] > 3 * chance["top1"]


def test_persons_of_an_unreadable_image_are_missed(test_set):
    records = DatasetCatalog.get(test_set)
    feats = list(oracle(records))
    index = next(i for i, r in enumerate(records) if r["annotations"])
    feats[index] = torch.full_like(feats[index], torch.nan)
    results, _ = evaluate(test_set, records, feats)
    assert 50.0 < results["detection"]["recall"] < 100.0
