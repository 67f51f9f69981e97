# SPDX-License-Identifier: Apache-2.0
"""The teacher of frozen features in stripes: its head in closed form, and its whole way."""

import pytest
import torch
from teacher_tiny import paint_persons, registered, teacher_cfg
from torch import nn

from psdiff.teachers.layers import pool_stripes
from psdiff.teachers.registry import build_teacher, build_teacher_loss, load_trained_teacher
from psdiff.teachers.stripes import StripesNet
from psdiff.teachers.trainer import TeacherTrainer

pytest.importorskip("timm")


def stripes_cfg(folder, **teacher):
    settings = {
        "BACKBONE": "timm/test_resnet",
        "FEATURES": ["res2", "res3"],
        "NUM_PARTS": 4,
        "EPOCHS": 0,
        "MAX_ITER": 0,
        **teacher,
    }
    cfg = teacher_cfg(folder, "stripes", **settings)
    cfg.MODEL.REID.EMBED_DIM = 4
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [120.0] * 3, [60.0] * 3
    return cfg


@pytest.fixture
def net(tmp_path):
    torch.manual_seed(0)
    return build_teacher(stripes_cfg(tmp_path))


def noisy_persons(width, rng):
    """Returns (90, width) features of 30 persons: strong nuisance, weak identity."""
    pids = torch.arange(30).repeat_interleave(3)
    feats = 0.01 * torch.randn(90, width, generator=rng)
    feats[:, 0] += torch.randn(90, generator=rng)  # varies within persons
    feats[:, 1] += 0.1 * torch.randn(30, generator=rng)[pids]  # varies between persons only
    return feats, pids


def test_a_map_is_pooled_in_stripes_of_unit_norm(net):
    crops = torch.randint(0, 256, (3, 3, 32, 16), dtype=torch.uint8)
    maps = net.eval().backbone(net.normalized(crops))
    (pooled,) = net.describe(crops).whole
    widths = [4 * x.shape[1] for x in maps]
    assert pooled.shape[1] == sum(widths) == net.project.in_features
    first = pooled[:, : widths[0]]
    torch.testing.assert_close(first.norm(dim=1), torch.ones(3))
    expected = torch.cat(pool_stripes(maps[0], 4, "avg"), dim=1)
    torch.testing.assert_close(first, nn.functional.normalize(expected, dim=1))


def test_the_backbone_stays_frozen(net):
    net.train()
    assert not net.backbone.training and net.neck.training
    assert not any(p.requires_grad for p in net.backbone.parameters())


def test_the_head_suppresses_what_varies_within_persons(net):
    rng = torch.Generator().manual_seed(0)
    width = net.project.in_features
    feats, pids = noisy_persons(width, rng)
    net.eval().fit(feats, pids)
    after = net.head(feats)[1].detach()
    torch.testing.assert_close(after.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)

    def share_within(x):
        means = torch.stack([x[pids == pid].mean(dim=0) for pid in range(30)])
        return ((x - means[pids]).square().sum() / (x - x.mean(dim=0)).square().sum()).item()

    assert share_within(feats) > 0.6
    assert share_within(after) < 0.2


def test_unlabeled_persons_do_not_count_as_one_identity(net):
    feats, pids = noisy_persons(net.project.in_features, torch.Generator().manual_seed(0))
    unlabeled = feats[:3] + 5 * torch.eye(feats.shape[1])[2]
    net.fit(torch.cat([feats, unlabeled]), torch.cat([pids, torch.full((3,), -1)]))
    assert torch.isfinite(net.project.weight).all()
    with pytest.raises(ValueError, match="an identity with two of them, but has 90 crops of 0"):
        net.fit(feats, torch.full_like(pids, -1))


def test_too_few_crops_are_named(net):
    with pytest.raises(ValueError, match=r"more than 2 MODEL.REID.EMBED_DIM = 8 crops .* has 8 "):
        net.fit(torch.randn(8, net.project.in_features), torch.zeros(8, dtype=torch.int64))


def test_features_are_required(tmp_path):
    with pytest.raises(ValueError, match=r"TEACHER.FEATURES is empty.*'res2', 'res3'"):
        build_teacher(stripes_cfg(tmp_path, FEATURES=[]))


def test_other_teachers_need_a_training(tmp_path):
    with registered(paint_persons(tmp_path)) as records:
        with pytest.raises(ValueError, match="EPOCHS is 0 and MAX_ITER 0"):
            TeacherTrainer(teacher_cfg(tmp_path, EPOCHS=0, MAX_ITER=0), records, 4)


@pytest.mark.parametrize("iterations", [0, 2])
def test_from_crops_to_a_file(tmp_path, iterations):
    cfg = stripes_cfg(tmp_path, MAX_ITER=iterations)
    with registered(paint_persons(tmp_path, unlabeled=True)) as records:
        trainer = TeacherTrainer(cfg, records, 4)
        net = trainer.run()
        assert isinstance(net, StripesNet)
        cfg.MODEL.PSDIFF.TEACHER.WEIGHTS = trainer.export()
        again = load_trained_teacher(cfg)
        crops = torch.stack([trainer.crops[row] for row in range(len(trainer.crops))])
        pids = trainer.loss.pids
    with torch.no_grad():
        feats = again(crops)
        torch.testing.assert_close(feats, net(crops))
    same = feats[pids == 0] @ feats[pids == 0].T
    other = feats[pids == 0] @ feats[pids == 1].T
    assert same.min() > other.max()  # a color is a person


def test_the_loss_holds_no_second_copy_of_the_network(net, tmp_path):
    cfg = stripes_cfg(tmp_path)
    loss = build_teacher_loss(cfg, net, torch.tensor([0, 0, 1, 1]), 2)
    assert not list(loss.parameters())
