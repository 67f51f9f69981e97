# SPDX-License-Identifier: Apache-2.0
"""The file of teacher embeddings: making it, being killed meanwhile, refusing a wrong one."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from psdiff_tiny import EMBED_DIM
from safetensors import safe_open
from teacher_tiny import NAME, paint_persons, registered, teacher_cfg

from psdiff.data import PSDiffMapper
from psdiff.teachers.embed import compute_embeddings
from psdiff.teachers.embeddings import TeacherEmbeddings, boxes_hash, describe_source
from psdiff.teachers.registry import build_teacher

KEY = "MODEL.PSDIFF.TEACHER.EMBEDDINGS"


@pytest.fixture
def persons(tmp_path):
    with registered(paint_persons(tmp_path)) as records:
        yield records


def build(folder, seed=0):
    torch.manual_seed(seed)
    cfg = teacher_cfg(folder, EMBEDDINGS=str(folder / "e.safetensors"))
    return cfg, build_teacher(cfg).eval()


# ---- the file ------------------------------------------------------------------------------------


def write_file(records, path):
    """Random embeddings."""
    count = sum(len(r["annotations"]) for r in records)
    feats = np.random.default_rng(0).standard_normal((count, 2, EMBED_DIM))
    feats /= np.linalg.norm(feats, axis=-1, keepdims=True)
    source = describe_source(NAME, records, "abc", "hhcl", "some")
    TeacherEmbeddings.save(str(path), records, feats, source)
    return feats


def test_embeddings_come_back_by_image_and_flip(persons, tmp_path):
    path = str(tmp_path / "e.safetensors")
    feats = write_file(persons, path)
    loaded = TeacherEmbeddings.load(path, (NAME,), EMBED_DIM)
    for index in (0, 5, 11):
        for flip in (False, True):
            got = loaded.of_image(persons[index], flip)
            np.testing.assert_allclose(got, feats[2 * index : 2 * index + 2, int(flip)], atol=1e-3)
    assert loaded.of_image({"image_id": 999}, False).shape == (0, EMBED_DIM)


def test_missing_and_unfinished_files_are_told_apart(persons, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{KEY} is '', which is not a file. Write it with"):
        TeacherEmbeddings.load("", (NAME,), EMBED_DIM)
    path = str(tmp_path / "e.safetensors")
    os.mkdir(path + ".unfinished")
    with pytest.raises(FileNotFoundError, match="not complete yet: run compute_embeddings.py"):
        TeacherEmbeddings.load(path, (NAME,), EMBED_DIM)


def test_files_that_do_not_belong_are_refused(persons, tmp_path):
    path = str(tmp_path / "e.safetensors")
    write_file(persons, path)
    with pytest.raises(ValueError, match="shape .24, 2, 16.*EMBED_DIM is 32"):
        TeacherEmbeddings.load(path, (NAME,), 32)
    with pytest.raises(ValueError, match="one training set"):
        TeacherEmbeddings.load(path, ("a", "b"), EMBED_DIM)
    persons[3]["annotations"][0]["bbox"][2] += 1
    with pytest.raises(ValueError, match=f"was written for data set '{NAME}'"):
        TeacherEmbeddings.load(path, (NAME,), EMBED_DIM)


@pytest.mark.parametrize("kept", [0, 50, 0.5, -1])
def test_a_truncated_file_is_refused(persons, tmp_path, kept):
    path = tmp_path / "e.safetensors"
    write_file(persons, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=f"{KEY}: .* is damaged or not a file of embeddings"):
        TeacherEmbeddings.load(str(path), (NAME,), EMBED_DIM)


def test_files_of_another_kind_or_count_are_refused(persons, tmp_path):
    path = str(tmp_path / "e.safetensors")
    feats = np.zeros((24, 2, EMBED_DIM))
    source = describe_source(NAME, persons, "abc", "hhcl", "some")
    TeacherEmbeddings.save(path, persons, feats, {**source, "format": "other.v7"})
    with pytest.raises(ValueError, match="has format 'other.v7', expected"):
        TeacherEmbeddings.load(path, (NAME,), EMBED_DIM)
    TeacherEmbeddings.save(path, persons, feats[:-1], source)
    with pytest.raises(ValueError, match="shape .23, 2, 16., which do not belong to the 24 boxes"):
        TeacherEmbeddings.load(path, (NAME,), EMBED_DIM)


def test_hash_follows_boxes_and_images(persons):
    first = boxes_hash(persons)
    assert first == boxes_hash(persons)
    assert first != boxes_hash(persons[:-1])


def test_mapper_gives_the_mirrored_embedding_with_the_mirrored_image(persons, tmp_path):
    cfg, _ = build(tmp_path)
    feats = write_file(persons, cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS)
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    mapper = PSDiffMapper(cfg, is_train=True)
    # A box outside the image is dropped; the rows of the others must not move.
    persons[4]["annotations"][0]["bbox"] = [500.0, 8.0, 520.0, 40.0]
    (row,) = mapper(persons[4])["instances"].gt_reid_feats.numpy()
    assert min(np.abs(row - feats[9, 0]).max(), np.abs(row - feats[9, 1]).max()) < 1e-3

    persons[4]["annotations"][0]["bbox"] = [6.0, 8.0, 22.0, 40.0]
    seen = set()
    for _ in range(12):
        instances = mapper(persons[4])["instances"]
        flipped = instances.gt_boxes.tensor[0, 0].item() > 42
        seen.add(flipped)
        np.testing.assert_allclose(instances.gt_reid_feats, feats[8:10, int(flipped)], atol=1e-3)
    assert seen == {False, True}


# ---- making it -----------------------------------------------------------------------------------


def content(cfg):
    """Metadata and the bytes of the tensors; safetensors writes metadata in any order."""
    path = cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS
    assert not os.path.exists(path + ".unfinished")
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


def test_file_holds_the_networks_embeddings_and_says_whose_they_are(persons, tmp_path):
    cfg, net = build(tmp_path)
    persons[2]["annotations"] = []  # a scene without persons
    assert compute_embeddings(net, NAME, persons, cfg) == 22
    loaded = TeacherEmbeddings.load(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS, (NAME,), EMBED_DIM)
    assert loaded.of_image(persons[2], False).shape == (0, EMBED_DIM)
    np.testing.assert_allclose(np.linalg.norm(loaded.feats, axis=2), 1.0, atol=2e-3)
    with safe_open(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS, framework="numpy") as file:
        meta = file.metadata()
    assert meta["format"] == "person_search.teacher_embeddings.v1" and meta["dataset"] == NAME
    assert meta["teacher_hash"] == net.weights_hash() and meta["teacher"] == "hhcl"
    assert meta["backbone"] == "build_slim_resnet_backbone"


def compute_until_killed(cfg, net, records, scenes, seen):
    """In a process of its own: ends by SIGKILL in the middle of a scene."""
    torch.set_num_threads(1)

    def count(*args):
        seen.value += 1
        if seen.value > 2 * scenes:  # each scene is looked at twice, plain and mirrored
            os.kill(os.getpid(), signal.SIGKILL)

    net.register_forward_pre_hook(count)
    compute_embeddings(net, NAME, records, cfg, chunk=2)


@pytest.mark.parametrize("scenes", [0, 1, 5, 11])
def test_killed_work_goes_on_and_gives_the_same_file(persons, tmp_path, scenes):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    cfg, net = build(whole)
    compute_embeddings(net, NAME, persons, cfg)
    expected = content(cfg)

    cfg, net = build(broken)
    fork = multiprocessing.get_context("fork")
    seen = fork.Value("i", 0)
    child = fork.Process(target=compute_until_killed, args=(cfg, net, persons, scenes, seen))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not os.path.exists(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS)

    looks = []
    net.register_forward_pre_hook(lambda *args: looks.append(1))
    compute_embeddings(net, NAME, persons, cfg, chunk=2)
    assert len(looks) == 2 * (12 - scenes // 2 * 2)  # only what was not done
    assert content(cfg) == expected


def leave_unfinished(cfg, net, records):
    """Does two chunks of two scenes, then stops."""
    looks = []

    def stop(*args):
        looks.append(1)
        if len(looks) > 8:
            raise KeyboardInterrupt

    handle = net.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        compute_embeddings(net, NAME, records, cfg, chunk=2)
    handle.remove()
    return cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS + ".unfinished"


def test_unfinished_work_of_another_teacher_is_thrown_away(persons, tmp_path, caplog):
    cfg, net = build(tmp_path, seed=1)
    leave_unfinished(cfg, net, persons)
    cfg, other = build(tmp_path, seed=2)
    compute_embeddings(other, NAME, persons, cfg, chunk=2)
    lines = [r.message for r in caplog.records if "another teacher or data set" in r.message]
    assert len(lines) == 1 and "starting over" in lines[0]
    begun_again = content(cfg)
    compute_embeddings(other, NAME, persons, cfg, chunk=2)
    assert content(cfg) == begun_again


def test_unfinished_work_of_another_data_set_is_thrown_away(persons, tmp_path, caplog):
    cfg, net = build(tmp_path)
    leave_unfinished(cfg, net, persons)
    persons[0]["annotations"][0]["bbox"][0] += 2
    compute_embeddings(net, NAME, persons, cfg, chunk=2)
    assert "another teacher or data set" in caplog.text
    TeacherEmbeddings.load(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS, (NAME,), EMBED_DIM)


def test_a_damaged_part_is_made_again(persons, tmp_path):
    cfg, net = build(tmp_path)
    compute_embeddings(net, NAME, persons, cfg)
    expected = content(cfg)
    folder = leave_unfinished(cfg, net, persons)
    parts = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    assert parts == ["0000000.safetensors", "0000002.safetensors"]
    os.truncate(os.path.join(folder, parts[0]), 40)
    compute_embeddings(net, NAME, persons, cfg, chunk=2)
    assert content(cfg) == expected


def test_a_recipe_is_part_of_the_teachers_hash(tmp_path):
    _, net = build(tmp_path)
    torch.manual_seed(0)
    same, wider = (
        build_teacher(teacher_cfg(tmp_path, CROP_SIZE=size)) for size in ([32, 16], [32, 20])
    )
    wider.load_state_dict(net.state_dict())
    same.load_state_dict(net.state_dict())
    assert same.weights_hash() == net.weights_hash() != wider.weights_hash()


def test_persons_of_a_skipped_image_have_no_embedding(persons, tmp_path, caplog):
    cfg, net = build(tmp_path)
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    os.truncate(persons[1]["file_name"], 200)
    assert compute_embeddings(net, NAME, persons, cfg) == 24
    assert "2 of 24 boxes have no embedding" in caplog.text
    loaded = TeacherEmbeddings.load(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS, (NAME,), EMBED_DIM)
    assert np.isfinite(loaded.of_image(persons[0], False)).all()
    with pytest.raises(ValueError, match="no embeddings for the image .*s1.png.*Write the file"):
        loaded.of_image(persons[1], False)


def test_ids_beyond_the_records_are_refused(persons, tmp_path):
    """Embeddings of other images in a file with the hash of these boxes."""
    path = str(tmp_path / "e.safetensors")
    source = describe_source(NAME, persons, "abc", "hhcl", "some")
    moved = [{**r, "image_id": 10**9 + r["image_id"]} for r in persons]
    TeacherEmbeddings.save(path, moved, np.zeros((24, 2, EMBED_DIM)), source)
    with pytest.raises(ValueError, match="do not belong to the 24 boxes"):
        TeacherEmbeddings.load(path, (NAME,), EMBED_DIM)


def test_metadata_of_another_version_is_refused(persons, tmp_path):
    path = str(tmp_path / "e.safetensors")
    feats = np.zeros((24, 2, EMBED_DIM))
    meta = {"format": "person_search.teacher_embeddings.v1"}  # no other entries
    TeacherEmbeddings.save(path, persons, feats, meta)
    with pytest.raises(ValueError, match="was written for data set 'None'"):
        TeacherEmbeddings.load(path, (NAME,), EMBED_DIM)
