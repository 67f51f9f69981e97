# SPDX-License-Identifier: Apache-2.0
"""The teachers of Table VI: shapes, sizes, gradients, and what is particular to each."""

import pytest
import torch
from teacher_tiny import METHODS, teacher_cfg
from torch import nn

from person_search.schema import UNLABELED_PID
from psdiff.teachers.agw import AGWNet
from psdiff.teachers.layers import GeneralizedMeanPool, NonLocalBlock, pool_stripes
from psdiff.teachers.registry import TEACHER_REGISTRY, build_teacher, build_teacher_loss

PIDS = torch.tensor([0, 0, 1, 1, 2, 2, UNLABELED_PID, UNLABELED_PID])


def build(folder, name, **teacher):
    torch.manual_seed(0)
    cfg = teacher_cfg(folder, name, **teacher)
    net = build_teacher(cfg)
    return net, build_teacher_loss(cfg, net, PIDS, 3)


def batch(loss):
    rows = torch.arange(8) if loss.uses_unlabeled else torch.arange(6)
    crops = torch.randint(0, 256, (8, 3, 32, 16), dtype=torch.uint8)
    return crops[rows], PIDS[rows], rows


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_registry_holds_the_rows_of_the_table(tmp_path):
    assert tuple(TEACHER_REGISTRY) == (*METHODS, "stripes")
    with pytest.raises(
        ValueError,
        match="NAME is 'osnet'; allowed: 'hhcl', 's_reid', 'mgn', 'agw', 'pplr', 'stripes'",
    ):
        build_teacher(teacher_cfg(tmp_path, "osnet"))


@pytest.mark.parametrize("name", METHODS)
def test_embeddings_have_one_length_and_unit_norm(name, tmp_path):
    net, _ = build(tmp_path, name)
    net.eval()
    crops = torch.randint(0, 256, (5, 3, 32, 16), dtype=torch.uint8)
    with torch.no_grad():
        feats = net(crops)
        alone = torch.cat([net(crop[None]) for crop in crops])
        assert net(crops[:0]).shape == (0, 16)
    assert feats.shape == (5, 16) and feats.dtype == torch.float32
    torch.testing.assert_close(feats.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(feats, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_every_weight(name, tmp_path):
    net, loss = build(tmp_path, name)
    model = nn.ModuleList([net, loss]).train()
    # the second step, since the last norm of a non-local block starts at zero
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        crops, pids, rows = batch(loss)
        losses = loss(net.describe(crops), pids, rows)
        assert all(key.startswith("loss_") and v.dim() == 0 for key, v in losses.items())
        sum(losses.values()).backward()
        optimizer.step()
    for key, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None and torch.isfinite(weight.grad).all(), key
            assert weight.grad.abs().max() > 0, key
    frozen = [key for key, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen == (["0.neck.bias"] if name in ("s_reid", "agw") else [])


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls_on_one_batch(name, tmp_path):
    net, loss = build(tmp_path, name)
    model = nn.ModuleList([net, loss]).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    crops, pids, rows = batch(loss)
    values = []
    for _ in range(25):
        total = sum(loss(net.describe(crops), pids, rows).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.7 * values[0]


def test_resnet_50_with_projection_has_24_million_weights(tmp_path):
    cfg = teacher_cfg(tmp_path, BACKBONE="torchvision/resnet50", CROP_SIZE=[256, 128])
    cfg.MODEL.REID.EMBED_DIM = 256
    net = build_teacher(cfg).eval()
    resnet, projection, neck, exponent = 23_508_032, 2048 * 256, 2 * 256, 1
    assert count(net) == resnet + projection + neck + exponent == 24_032_833
    with torch.no_grad():
        assert net.backbone(torch.zeros(1, 3, 64, 32)).shape == (1, 2048, 4, 2)


# ---- what is particular to a method --------------------------------------------------------------


def test_mgn_has_three_branches_and_eight_reduced_features(tmp_path):
    net, loss = build(tmp_path, "mgn")
    crops, _, _ = batch(loss)
    feats = net.describe(crops)
    assert [tuple(x.shape[1:]) for x in feats.whole] == [(12,)] * 3
    assert [tuple(x.shape[1:]) for x in feats.reduced] == [(8,)] * 3
    assert [tuple(x.shape[1:]) for x in feats.parts] == [(8,)] * 5
    assert net.project.in_features == 8 * 8
    trunk = net.backbone(net.normalized(crops))
    heights = [branch(trunk).shape[2] for branch in net.branches]
    assert heights == [4, 8, 8]  # only the global branch halves the map
    first, second, third = ([*branch.parameters()] for branch in net.branches)
    assert first[0] is not second[0] and second[0] is not third[0]


def test_agw_puts_non_local_blocks_behind_the_last_blocks_of_stages(tmp_path):
    cfg = teacher_cfg(tmp_path, "agw", NON_LOCAL=[1, 2])
    cfg.MODEL.SLIM_RESNET.BLOCKS = [3, 4]
    assert list(AGWNet(cfg).non_local) == ["0_2", "1_2", "1_3"]


def test_a_new_agw_is_its_backbone(tmp_path):
    net, _ = build(tmp_path, "agw")
    net.eval()
    crops = torch.randint(0, 256, (2, 3, 32, 16), dtype=torch.uint8)
    expected = net.pool(net.backbone(net.normalized(crops)))
    torch.testing.assert_close(net.describe(crops).whole[0], expected)


def test_non_local_block_against_loops():
    block = NonLocalBlock(4).eval()
    nn.init.ones_(block.norm.weight)
    x = torch.randn(1, 4, 2, 3)
    query, key, value = (conv(x)[0].flatten(1).T for conv in (block.query, block.key, block.value))
    seen = []
    for i in range(6):
        seen.append(sum(query[i] @ key[j] / 6 * value[j] for j in range(6)))
    seen = torch.stack(seen).T.view(1, 1, 2, 3)
    torch.testing.assert_close(block(x), x + block.norm(block.out(seen)))


def test_stripes_run_from_head_to_feet():
    x = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 2, 6, 4)
    assert [s[0, 0].item() for s in pool_stripes(x, 3, "avg")] == [0.5, 2.5, 4.5]
    assert [s[0, 1].item() for s in pool_stripes(x, 2, "max")] == [2.0, 5.0]


def test_generalized_mean_lies_between_mean_and_maximum():
    x = torch.rand(2, 3, 4, 5)
    pooled = GeneralizedMeanPool()(x)
    assert (pooled >= x.mean(dim=(2, 3))).all() and (pooled <= x.amax(dim=(2, 3))).all()
    torch.testing.assert_close(GeneralizedMeanPool(p=1.0)(x), x.mean(dim=(2, 3)))


def test_hhcl_takes_unlabeled_persons_as_it_is_told(tmp_path):
    for kind, entries in (("instances", 2), ("queue", 4), ("none", None)):
        _, loss = build(tmp_path, "hhcl", UNLABELED=kind)
        assert loss.uses_unlabeled == (kind != "none")
        assert entries is None or len(loss.memory.unlabeled.slots) == entries
    with pytest.raises(ValueError, match="UNLABELED is 'some'; allowed: 'instances', 'queue'"):
        build(tmp_path, "hhcl", UNLABELED="some")
    with pytest.raises(ValueError, match="QUEUE_SIZE is 0; it must be at least 1"):
        build(tmp_path, "hhcl", UNLABELED="queue", QUEUE_SIZE=0)


@pytest.mark.parametrize("pid", [3, 10**6, -2])
def test_person_ids_out_of_range_are_refused(tmp_path, pid):
    cfg = teacher_cfg(tmp_path, "hhcl")
    net = build_teacher(cfg)
    with pytest.raises(ValueError, match="num_pids 3; ids must be 0 to 2, or -1"):
        build_teacher_loss(cfg, net, torch.tensor([0, 1, 2, pid]), 3)
