# SPDX-License-Identifier: Apache-2.0
"""RoI sampler, ResNet stage, predictor, embedder, initialization, and the losses of detection."""

import urllib.error

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import fastrcnn_loss

from diffps.embedder import CBAM, DropPath, MultiGranularityEmbedder, split_evenly
from diffps.meta_arch import initialize
from diffps.norm import RowNorm
from diffps.res5 import Res5, read_res5_weights
from diffps.roi_heads import PersonPredictor
from diffps.sampling import BACKGROUND, RoISampler
from person_search.schema import UNLABELED_PID


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# ---- sampler -------------------------------------------------------------------------------------
def shifted(ious, person=(0.0, 0.0, 100.0, 100.0)):
    """Boxes of given IoU with the person's: as high, and as much narrower."""
    x1, y1, x2, y2 = person
    return torch.tensor([[x1, y1, x1 + (x2 - x1) * iou, y2] for iou in ious]).view(-1, 4)


def sample(sampler, ious, persons=1, **kwargs):
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [500.0, 0.0, 600.0, 100.0]])[:persons]
    target = Instances(
        (700, 700), gt_boxes=Boxes(boxes.view(-1, 4)), gt_pids=torch.tensor([7, -1])[:persons]
    )
    with EventStorage():
        return sampler([Boxes(shifted(ious))], [target], **kwargs)[0]


@given(num_positive=st.integers(0, 30), num_negative=st.integers(0, 30), batch=st.integers(1, 10))
def test_balanced_sample_has_as_many_of_both_kinds(num_positive, num_negative, batch):
    half = batch
    found = sample(RoISampler(0.5, 0.5, 2 * batch), [0.9] * num_positive + [0.1] * num_negative)
    persons = int((found.gt_classes == 0).sum())
    background = int((found.gt_classes == BACKGROUND).sum())
    if num_positive and num_negative:
        # int(half * min(P / half, N / half, 1)) of each, as the release counts
        expected = int(half * min(num_positive / half, num_negative / half, 1.0) + 1e-9)
        assert persons == background == expected
    else:
        assert persons == min(num_positive, half) and background == min(num_negative, half)


def test_fraction_sample_is_filled_up_with_background():
    found = sample(RoISampler(0.5, 0.5, 8, mode="fraction"), [0.9] * 2 + [0.1] * 20)
    assert int((found.gt_classes == 0).sum()) == 2 and len(found) == 8


def test_thresholds_include_persons_from_below_and_exclude_background_from_above():
    ious = [0.25, 0.5, 0.75, 0.125]
    exact = pairwise_iou(Boxes(shifted([1.0])), Boxes(shifted(ious)))[0]
    assert exact.tolist() == ious
    found = sample(RoISampler(0.75, 0.25, 100), ious)
    widths = {c: set() for c in (0, BACKGROUND)}
    for box, c in zip(found.proposal_boxes.tensor, found.gt_classes.tolist(), strict=True):
        widths[c].add(float(box[2]) / 100)
    assert widths[0] == {0.75} and widths[BACKGROUND] == {0.125}


def test_background_has_no_identity_and_persons_that_of_their_match():
    found = sample(RoISampler(0.5, 0.5, 8), [0.9, 0.1, 0.1])
    assert found.gt_pids.tolist() == [7, UNLABELED_PID]
    assert found.gt_boxes.tensor[0].tolist() == [0.0, 0.0, 100.0, 100.0]
    only = sample(RoISampler(0.5, 0.5, 8), [0.9, 0.1, 0.1], keep_background=False)
    assert only.gt_classes.tolist() == [0]


def test_an_image_without_persons_gives_background_with_all_fields():
    found = sample(RoISampler(0.5, 0.5, 8), [0.9, 0.1, 0.1, 0.2, 0.3], persons=0)
    assert (found.gt_classes == BACKGROUND).all() and len(found) == 4
    assert (found.gt_pids == UNLABELED_PID).all() and len(found.gt_boxes) == 4
    assert len(sample(RoISampler(0.5, 0.5, 8), [], persons=0)) == 0


def test_sampler_settings_name_their_key():
    with pytest.raises(ValueError, match="MODEL.DIFFPS.HEAD.SAMPLER"):
        RoISampler(0.5, 0.5, 8, mode="all")
    with pytest.raises(ValueError, match="below 0.8.*from 0.5 on.*DIFFPS.REID.NEG_IOU, POS_IOU"):
        RoISampler(0.5, 0.8, 8)


# ---- ResNet stage --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None)
    for module in model.layer4.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


def test_res5_is_layer4_of_torchvision(resnet, tmp_path):
    path = str(tmp_path / "resnet50.pth")
    torch.save(resnet.state_dict(), path)
    res5 = Res5(1024, 512, weights=path)
    assert parameters(res5) == 14_964_736
    res5.load_initial_weights()
    x = torch.randn(2, 1024, 6, 4)
    with torch.no_grad():
        expected = resnet.layer4(x)
        torch.testing.assert_close(res5.eval()(x), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape == (2, 2048, 3, 2)
    # batch norms train
    assert all(p.requires_grad for p in res5.parameters())
    res5.train()(x)
    assert res5[0].conv1.norm.num_batches_tracked == 1


def test_res5_refuses_other_networks(tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.DIFFPS.HEAD.RES5_WEIGHTS.*nowhere.pth"):
        read_res5_weights("nowhere.pth")
    path = str(tmp_path / "other.pth")
    torch.save({"layer4.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="lacks.*RES5_WIDTH 512"):
        Res5(16, 8, weights=path).load_initial_weights()
    with pytest.raises(ValueError, match="RES5_WIDTH is 8 on maps of 32 channels"):
        Res5(32, 8)


def test_initial_weights_are_read_only_where_no_checkpoint_was_loaded():
    """Evaluation and resuming must require neither the file nor a network."""
    res5 = Res5(16, 8, weights="nowhere.pth")
    with pytest.raises(FileNotFoundError, match="MODEL.DIFFPS.HEAD.RES5_WEIGHTS"):
        res5.load_initial_weights()
    holder = torch.nn.Sequential(res5)
    holder.load_state_dict({"1.x": torch.zeros(1)}, strict=False)  # nothing of this part
    with pytest.raises(FileNotFoundError):
        res5.load_initial_weights()
    saved = torch.nn.Sequential(Res5(16, 8)).state_dict()
    holder.load_state_dict(saved)
    res5.load_initial_weights()
    assert all(torch.equal(saved[name], x) for name, x in holder.state_dict().items())


def test_a_failed_download_names_the_remedy(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, "get_state_dict", unreachable)
    message = "RES5_WEIGHTS is 'torchvision'.*no route to host.*resnet50-.*pth.*random weights"
    with pytest.raises(RuntimeError, match=message):
        read_res5_weights("torchvision")


@pytest.mark.parametrize("size", [(6, 4), (5, 3)])
def test_res5_without_rois_gives_zero_gradients_and_keeps_the_norms(size):
    res5 = Res5(16, 8).train()
    x = torch.zeros(0, 16, *size)
    output = res5(x)
    assert output.shape[1:] == res5.eval()(torch.zeros(1, 16, *size)).shape[1:]
    res5.train()
    output.sum().backward()
    assert all((p.grad == 0).all() for p in res5.parameters())
    assert res5[0].conv1.norm.num_batches_tracked == 0


# ---- predictor -----------------------------------------------------------------------------------
def make_predictor(channels=6, **kwargs):
    settings = {
        "box2box_transform": Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        "num_classes": 1,
        "cls_agnostic_bbox_reg": True,
        "smooth_l1_beta": 1.0,
        "loss_weight": {"loss_box_reg": 10.0},
    }
    return PersonPredictor(ShapeSpec(channels=channels), **(settings | kwargs))


def test_predictor_parameters():
    assert parameters(make_predictor(2048)) == 12_298
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_BBOX_REG"):
        make_predictor(cls_agnostic_bbox_reg=False, num_classes=2)


def test_losses_equal_those_of_torchvision():
    """Softmax cross-entropy and smooth L1 from the same scores, deltas and matches."""
    generator = torch.Generator().manual_seed(3)
    corner = 100 * torch.rand(12, 2, generator=generator)
    boxes = torch.cat([corner, corner + 20 + 50 * torch.rand(12, 2, generator=generator)], dim=1)
    gt_boxes = boxes + 4 * torch.randn(12, 4, generator=generator)
    is_person = torch.arange(12) < 5
    proposals = Instances((300, 300), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(gt_boxes))
    proposals.gt_classes = torch.where(is_person, 0, BACKGROUND)
    scores = torch.randn(12, 2, generator=generator)
    deltas = torch.randn(12, 4, generator=generator)
    with EventStorage():
        losses = make_predictor().losses((scores, deltas), [proposals])

    targets = make_predictor().box2box_transform.get_deltas(boxes, gt_boxes)
    # background comes first there, and deltas per class
    cls, reg = fastrcnn_loss(scores.flip(1), deltas.repeat(1, 2), [is_person.long()], [targets])
    # theirs has beta 1/9, ours and the release 1
    smooth = F.smooth_l1_loss(deltas[:5], targets[:5], beta=1.0, reduction="sum") / 12
    torch.testing.assert_close(losses["loss_cls"], cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["loss_box_reg"], 10 * smooth, atol=1e-5, rtol=1e-5)
    ninth = make_predictor(smooth_l1_beta=1 / 9)
    with EventStorage():
        again = ninth.losses((scores, deltas), [proposals])["loss_box_reg"]
    torch.testing.assert_close(again, 10 * reg, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_row_norm_on_too_few_rows_uses_running_statistics(rows):
    norm = RowNorm(3).train()
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0 - norm.eps)
    x = torch.full((rows, 3), 5.0)
    torch.testing.assert_close(norm(x), torch.full((rows, 3), 1.5))
    assert norm.num_batches_tracked == 0 and (norm.running_mean == 2.0).all()
    x = torch.randn(4, 3)
    torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, training=True))


# ---- embedder ------------------------------------------------------------------------------------
def test_dimensions_of_the_strips():
    embedder = MultiGranularityEmbedder(in_channels=[4, 8], embed_dim=1024, reduction=2)
    dims = [
        [[strip.linear.out_features for strip in branch] for branch in one.branches]
        for one in embedder.maps
    ]
    assert dims == [[[171], [86, 85], [57, 57, 56]]] * 2
    assert [split_evenly(h, 3) for h in (24, 12, 7)] == [[8, 8, 8], [4, 4, 4], [3, 2, 2]]
    assert parameters(MultiGranularityEmbedder(in_channels=[1024, 2048], embed_dim=1024)) == (
        5_527_844
    )


def test_embedding_strip_by_strip():
    embedder = MultiGranularityEmbedder(in_channels=[4, 8], embed_dim=40, reduction=2).eval()
    for module in embedder.modules():
        if isinstance(module, RowNorm):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    maps = [torch.randn(3, 4, 6, 3), torch.randn(3, 8, 3, 2)]
    parts = []
    for one, x in zip(embedder.maps, maps, strict=True):
        rows = x.shape[2]
        for i, branch in enumerate(one.branches):
            for j, strip in enumerate(branch):
                # heights 6 and 3 divide by 1, 3 and, the smaller one into 2 + 1, by 2
                cuts = [0, *torch.tensor(split_evenly(rows, i + 1)).cumsum(0).tolist()]
                cut = strip.attention(x[:, :, cuts[j] : cuts[j + 1]])
                pooled = F.adaptive_max_pool2d(cut, 1).flatten(1)
                n = strip.norm
                y = pooled @ strip.linear.weight.t()
                y = (y - n.running_mean) / (n.running_var + n.eps).sqrt() * n.weight + n.bias
                parts.append(y)
    expected = torch.cat(parts, dim=1)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(embedder(maps), expected, atol=1e-5, rtol=1e-5)


def test_cbam_gate_by_gate():
    cbam = CBAM(4, reduction=2)
    x = torch.randn(2, 4, 5, 3)

    def mlp(v):
        hidden = F.relu(v @ cbam.mlp[0].weight[:, :, 0, 0].t() + cbam.mlp[0].bias)
        return hidden @ cbam.mlp[2].weight[:, :, 0, 0].t() + cbam.mlp[2].bias

    gate = torch.sigmoid(mlp(x.mean(dim=(2, 3))) + mlp(x.flatten(2).max(dim=2)[0]))
    y = x * gate[:, :, None, None]
    stats = torch.stack([y.mean(dim=1), y.max(dim=1)[0]], dim=1)
    expected = y * torch.sigmoid(F.conv2d(stats, cbam.spatial.weight, cbam.spatial.bias, padding=3))
    torch.testing.assert_close(cbam(x), expected, atol=1e-6, rtol=1e-5)


def test_drop_path_drops_whole_rows_and_keeps_the_mean():
    drop = DropPath(0.5)
    x = torch.ones(20_000, 2)
    y = drop.train()(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y[:, 0] == y[:, 1]).all() and y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(x), x)


def test_no_rois_give_no_embeddings_but_gradients():
    embedder = MultiGranularityEmbedder(in_channels=[4], embed_dim=12).train()
    output = embedder([torch.zeros(0, 4, 6, 3)])
    assert output.shape == (0, 12)
    output.sum().backward()
    assert all((p.grad == 0).all() for p in embedder.parameters())


def test_embedding_too_short_for_its_strips():
    with pytest.raises(ValueError, match="MODEL.REID.EMBED_DIM is 11.*12 dimensions"):
        MultiGranularityEmbedder(in_channels=[4, 8], embed_dim=11)


# ---- initialization ------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", ["v1", "v2", "v2_keep_norm"])
def test_initialization_of_norms(scheme):
    embedder = MultiGranularityEmbedder(in_channels=[64], embed_dim=64)
    for norm in (m for m in embedder.modules() if isinstance(m, RowNorm)):
        torch.nn.init.constant_(norm.bias, 3.0 if scheme == "v2" else 0.0)
    initialize(scheme, embedder)
    strip = embedder.maps[0].branches[0][0]
    assert (strip.norm.bias == 0).all() and (strip.attention.spatial.bias == 0).all()
    assert torch.equal(strip.norm.weight, torch.ones_like(strip.norm.weight)) == (scheme != "v2")
    if scheme == "v2":
        assert strip.norm.weight.abs().max() < 0.1
    std = strip.linear.weight.std().item()
    assert (0.008 < std < 0.012) == (scheme != "v1")
    with pytest.raises(ValueError, match="MODEL.DIFFPS.HEAD.INIT"):
        initialize("v3", embedder)
