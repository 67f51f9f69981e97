# SPDX-License-Identifier: Apache-2.0
"""The teacher: crops, batches, memory, training and the file of embeddings."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from psdiff_tiny import EMBED_DIM, tiny_cfg
from safetensors import safe_open

from person_search.schema import UNLABELED_PID
from psdiff.data import PSDiffMapper
from psdiff.teachers.crops import IdentityBatches, crop_image
from psdiff.teachers.embeddings import TeacherEmbeddings, boxes_hash
from psdiff.teachers.memory import HybridMemory
from psdiff.teachers.reid_net import GeneralizedMeanPool, TeacherNet
from psdiff.teachers.train import embed_boxes, train_teacher


def test_crop_of_a_plain_box_has_its_color():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[1, 10:30, 20:40] = 200
    crops = crop_image(image, [[20, 10, 40, 30], [-50, -50, 5, 5], [58.9, 39.9, 90, 90]], (8, 4))
    assert crops.shape == (3, 3, 8, 4)
    assert (crops[0, 1] == 200).all() and (crops[0, [0, 2]] == 0).all()
    assert (crops[1:] == 0).all()


def test_batches_hold_p_identities_with_k_crops_and_unlabeled_ones():
    pids = torch.tensor([0] * 5 + [1] * 2 + [2] * 7 + [UNLABELED_PID] * 4)
    batches = iter(IdentityBatches(pids, ids_per_batch=2, crops_per_id=4, unlabeled_per_batch=3))
    for _ in range(5):
        batch = pids[next(batches)]
        values, counts = batch.unique(return_counts=True)
        assert values[0] == UNLABELED_PID and counts[0] == 3
        assert counts[1:].tolist() == [4, 4]


def test_batches_are_repeatable_and_refuse_one_identity():
    pids = torch.tensor([0, 0, 1, 1, 2, 2])
    first, again = (iter(IdentityBatches(pids, 2, 2, seed=7)) for _ in range(2))
    assert [next(first) for _ in range(4)] == [next(again) for _ in range(4)]
    with pytest.raises(ValueError, match="at least two labelled identities"):
        IdentityBatches(torch.zeros(3), 2, 2)


def test_memory_loss_and_update_by_hand():
    memory = HybridMemory(num_pids=2, dim=2, temperature=1.0, momentum=0.5)
    memory.centroids.copy_(torch.eye(2))
    memory.hard_instances.copy_(torch.eye(2))
    feats = torch.tensor([[1.0, 0.0], [0.6, 0.8]], requires_grad=True)
    loss = memory(feats, torch.tensor([0, 0]))
    expected = 0.0
    for sim in ([1.0, 0.0], [0.6, 0.8]):
        expected += (np.log(np.exp(sim).sum()) - sim[0]) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # centroid: halfway to the mean (0.8, 0.4); hardest: halfway to (0.6, 0.8)
    centroid, hardest = np.array([0.9, 0.2]), np.array([0.8, 0.4])
    np.testing.assert_allclose(memory.centroids[0], centroid / np.linalg.norm(centroid), rtol=1e-5)
    np.testing.assert_allclose(memory.hard_instances[0], hardest / np.linalg.norm(hardest), 1e-5)
    torch.testing.assert_close(memory.centroids[1], torch.tensor([0.0, 1.0]))


def test_unlabeled_crops_become_negatives_in_a_circular_queue():
    memory = HybridMemory(2, 2, queue_size=2)
    feats = torch.nn.functional.normalize(torch.randn(3, 2), dim=1)
    nobody = torch.full((3,), UNLABELED_PID)
    assert memory(feats, nobody).item() == 0.0
    torch.testing.assert_close(memory.queue, feats[[2, 1]])
    assert memory.queue_head.item() == 1
    before = memory.state_dict()
    copy = HybridMemory(2, 2, queue_size=2)
    copy.load_state_dict(before)
    one = torch.tensor([0])
    assert copy(feats[:1], one).item() == pytest.approx(memory(feats[:1], one).item())


def test_generalized_mean_lies_between_mean_and_maximum():
    x = torch.rand(2, 3, 4, 5)
    pooled = GeneralizedMeanPool()(x)
    assert (pooled >= x.mean(dim=(2, 3))).all() and (pooled <= x.amax(dim=(2, 3))).all()


@pytest.fixture
def colored_people(tmp_path):
    """Twelve scenes with two persons each; an identity is a color. Registered as a data set."""
    colors = [(220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40)]
    rng = np.random.default_rng(0)
    records = []
    for index in range(12):
        image = rng.integers(90, 130, (48, 64, 3), dtype=np.uint8)
        annotations = []
        for slot, left in enumerate((6, 38)):
            pid = (index + slot * (1 + index % 3)) % 4
            image[8:40, left : left + 16] = colors[pid]
            annotations.append(
                {
                    "bbox": [left, 8, left + 16, 40],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "person_id": pid,
                }
            )
        path = str(tmp_path / f"s{index}.png")
        cv2.imwrite(path, image)
        records.append(
            {
                "file_name": path,
                "image_id": index * 3,
                "height": 48,
                "width": 64,
                "cam_id": None,
                "annotations": annotations,
            }
        )
    DatasetCatalog.register("colored_people", lambda: records)
    yield records
    DatasetCatalog.remove("colored_people")


def teacher_cfg(tmp_path):
    cfg = tiny_cfg(
        TEACHER__CROP_SIZE=[32, 16],
        TEACHER__MAX_ITER=30,
        TEACHER__IDS_PER_BATCH=4,
        TEACHER__BASE_LR=0.01,
        TEACHER__QUEUE_SIZE=4,
    )
    cfg.OUTPUT_DIR = str(tmp_path / "teacher")
    cfg.DATASETS.TRAIN = ("colored_people",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.FORMAT = "RGB"
    cfg.SEED = 1
    return cfg


def test_a_trained_teacher_tells_colors_apart(colored_people, tmp_path):
    cfg = teacher_cfg(tmp_path)
    net = train_teacher(cfg, colored_people, num_pids=4)
    feats = embed_boxes(net, colored_people, cfg)[:, 0]
    pids = np.array([a["person_id"] for r in colored_people for a in r["annotations"]])
    sim = feats @ feats.T
    same = pids[:, None] == pids
    assert sim[same].min() > sim[~same].max()
    np.testing.assert_allclose(np.linalg.norm(feats, axis=1), 1.0, rtol=1e-5)

    again = TeacherNet(cfg).eval()
    again.load(str(tmp_path / "teacher" / "teacher.safetensors"))
    assert again.weights_hash() == net.weights_hash()
    np.testing.assert_allclose(embed_boxes(again, colored_people, cfg)[:, 0], feats, atol=1e-5)


def test_weights_of_another_teacher_are_refused(tmp_path):
    net = TeacherNet(teacher_cfg(tmp_path))
    net.save(str(tmp_path / "weights.safetensors"))
    cfg = teacher_cfg(tmp_path)
    cfg.MODEL.REID.EMBED_DIM = EMBED_DIM * 2
    with pytest.raises(ValueError, match="MODEL.PSDIFF.TEACHER.WEIGHTS.*does not fit"):
        TeacherNet(cfg).load(str(tmp_path / "weights.safetensors"))


def _save_embeddings(records, path):
    count = sum(len(r["annotations"]) for r in records)
    feats = np.random.default_rng(0).standard_normal((count, 2, EMBED_DIM))
    feats /= np.linalg.norm(feats, axis=-1, keepdims=True)
    TeacherEmbeddings.save(path, "colored_people", records, feats, "abc")
    return feats


def test_embeddings_come_back_by_image_and_flip(colored_people, tmp_path):
    path = str(tmp_path / "e.safetensors")
    feats = _save_embeddings(colored_people, path)
    loaded = TeacherEmbeddings.load(path, ("colored_people",), EMBED_DIM)
    for index in (0, 5, 11):
        for flip in (False, True):
            got = loaded.of_image(colored_people[index], flip)
            np.testing.assert_allclose(got, feats[2 * index : 2 * index + 2, int(flip)], atol=1e-3)
    assert loaded.of_image({"image_id": 999}, False).shape == (0, EMBED_DIM)


def test_embeddings_that_do_not_belong_are_refused(colored_people, tmp_path):
    path = str(tmp_path / "e.safetensors")
    _save_embeddings(colored_people, path)
    key = "MODEL.PSDIFF.TEACHER.EMBEDDINGS"
    with pytest.raises(FileNotFoundError, match=key):
        TeacherEmbeddings.load("", ("colored_people",), EMBED_DIM)
    with pytest.raises(ValueError, match="length 16.*EMBED_DIM is 32"):
        TeacherEmbeddings.load(path, ("colored_people",), 32)
    with pytest.raises(ValueError, match="one training set"):
        TeacherEmbeddings.load(path, ("a", "b"), EMBED_DIM)
    colored_people[3]["annotations"][0]["bbox"][2] += 1
    with pytest.raises(ValueError, match="was written for data set 'colored_people'"):
        TeacherEmbeddings.load(path, ("colored_people",), EMBED_DIM)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((tmp_path / "e.safetensors").read_bytes()[:50])
    with pytest.raises(ValueError, match="not a whole file"):
        TeacherEmbeddings.load(str(broken), ("colored_people",), EMBED_DIM)


def test_the_scripts_train_embed_and_report_errors_in_one_line(tmp_path):
    """Both commands of the README on drawn data, and what they say if a file is missing."""
    from person_search.data.synthetic import SyntheticConfig, write_cuhk_sysu

    small = SyntheticConfig(
        train_images=6, test_images=5, train_ids=3, test_ids=2, width=160, height=120,
        gallery_sizes=(4,), people=(2, 3),
    )  # fmt: skip
    write_cuhk_sysu(tmp_path / "synthetic" / "CUHK-SYSU", small, progress=False)
    root = Path(__file__).resolve().parents[3]
    env = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    common = ["--config-file", str(root / "configs/PSDiff/psdiff_slim_synthetic.yaml")]
    common += ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.PSDIFF.TEACHER.MAX_ITER", "2"]
    embeddings = str(tmp_path / "e.safetensors")

    def run(script, *opts):
        command = [sys.executable, str(root / "projects/PSDiff" / script), *common, *opts]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    keys = ["MODEL.PSDIFF.TEACHER.EMBEDDINGS", embeddings, "MODEL.PSDIFF.TEACHER.WEIGHTS"]
    missing = run("compute_embeddings.py", *keys, str(tmp_path / "nothing.safetensors"))
    assert missing.returncode == 2
    assert "nothing.safetensors', which is no file" in missing.stderr
    assert "Traceback" not in missing.stderr

    trained = run("train_teacher.py")
    assert trained.returncode == 0, trained.stderr
    embedded = run("compute_embeddings.py", *keys, str(tmp_path / "out" / "teacher.safetensors"))
    assert embedded.returncode == 0, embedded.stderr
    start = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True)["model"]
    assert all(name.startswith("backbone.bottom_up.") for name in start)
    with safe_open(embeddings, framework="numpy") as file:
        assert file.get_tensor("embeddings").shape[1:] == (2, 128)


def test_hash_follows_boxes_and_images(colored_people):
    first = boxes_hash(colored_people)
    assert first == boxes_hash(colored_people)
    assert first != boxes_hash(colored_people[:-1])


def test_mapper_gives_the_mirrored_embedding_with_the_mirrored_image(colored_people, tmp_path):
    cfg = teacher_cfg(tmp_path)
    path = str(tmp_path / "e.safetensors")
    feats = _save_embeddings(colored_people, path)
    cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS = path
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    mapper = PSDiffMapper(cfg, is_train=True)
    # A box outside the picture is dropped; the rows of the others must not move.
    colored_people[4]["annotations"][0]["bbox"] = [500.0, 8.0, 520.0, 40.0]
    (row,) = mapper(colored_people[4])["instances"].gt_reid_feats.numpy()
    assert min(np.abs(row - feats[9, 0]).max(), np.abs(row - feats[9, 1]).max()) < 1e-3

    colored_people[4]["annotations"][0]["bbox"] = [6.0, 8.0, 22.0, 40.0]
    seen = set()
    for _ in range(12):
        instances = mapper(colored_people[4])["instances"]
        flipped = instances.gt_boxes.tensor[0, 0].item() > 32
        seen.add(flipped)
        np.testing.assert_allclose(instances.gt_reid_feats, feats[8:10, int(flipped)], atol=1e-3)
    assert seen == {False, True}
