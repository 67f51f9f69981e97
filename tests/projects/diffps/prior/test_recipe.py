# SPDX-License-Identifier: Apache-2.0
"""Training of a prior at the smallest size: learning, exact resuming, loading of the result."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffps_tiny import tiny_backbone
from torch import nn

from diffps.prior.denoiser import DenoisingLoss, DenoisingOptions, trained_parts
from diffps.prior.recipe import PRIOR_SIZES, PriorOptions, PriorTraining
from diffps.prior.scenes import SceneOptions, draw_scenes, load_scenes, plan_scenes
from diffps.prior.trainer import Averager, Schedule, Stage
from diffps.prior.vae import CROP, AutoencoderLoss, encode_scenes, set_scaling_factor
from diffps.tiny import build_pipeline
from person_search.data.synthetic.looks import look_distance
from person_search.data.synthetic.plan import make_casts
from person_search.synthetic_config import SyntheticConfig

SIZES = replace(
    PRIOR_SIZES, unet_channels=(8, 8, 8, 8), unet_heads=(1, 1, 1, 1), vae_channels=(4, 4, 8, 8),
    text_width=12, text_layers=1, text_heads=1, max_tokens=12,
)  # fmt: skip
SCENES = SceneOptions(count=6, cameras=1, size=(128, 64), most_people=2, empty_share=0.4)
OPTIONS = PriorOptions(
    vae_iterations=2,
    iterations=2,
    vae_batch=2,
    scenes=SCENES,
    denoising=DenoisingOptions(batch=4, crop=8),
    sizes=SIZES,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    draw_scenes(folder / "scenes", SCENES, progress=False)
    return folder


@pytest.fixture(scope="module")
def scenes(work):
    return load_scenes(work / "scenes")


def make_denoising(scenes, **options):
    torch.manual_seed(0)
    pipeline = build_pipeline(SIZES, "sd21", "v_prediction")
    moments = encode_scenes(pipeline.vae, scenes, progress=False)
    set_scaling_factor(pipeline.vae, moments)
    return pipeline, DenoisingLoss(
        pipeline, scenes, moments, DenoisingOptions(batch=8, crop=8, **options)
    )


# ---- scenes ------------------------------------------------------------------------------------
def test_scenes_have_persons_in_their_boxes_or_are_empty(scenes):
    specs = plan_scenes(SCENES)
    assert [len(persons) for persons in scenes.persons] == [len(spec.people) for spec in specs]
    assert {0} < {len(persons) for persons in scenes.persons}
    assert scenes.images.shape == (6, 3, 64, 128) and scenes.images.dtype == torch.uint8
    for persons in scenes.persons:
        for person in persons:
            x1, y1, x2, y2 = person.box
            assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 64


def test_scenes_are_drawn_once_per_options(tmp_path):
    few = replace(SCENES, count=1)
    draw_scenes(tmp_path, few, progress=False)
    image = tmp_path / "00000.jpg"
    first = image.read_bytes()
    image.write_bytes(b"")
    draw_scenes(tmp_path, few, progress=False)
    assert image.read_bytes() == b""
    with pytest.raises(FileNotFoundError, match="00000.jpg"):
        load_scenes(tmp_path)
    draw_scenes(tmp_path, replace(few, seed=1), progress=False)
    assert image.read_bytes() not in (b"", first)


def test_persons_of_the_scenes_are_not_in_the_datasets():
    casts = make_casts(SyntheticConfig(), 1)
    specs = plan_scenes(replace(SceneOptions(), count=100))
    drawn = [look for spec in specs for _, look in spec.people]
    taken = casts[1].looks
    assert min(look_distance(a, b) for a in drawn for b in taken) > 0


def test_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="scenes.json"):
        load_scenes(tmp_path)
    with pytest.raises(ValueError, match="empty_share is 2"):
        SceneOptions(empty_share=2)


# ---- loop --------------------------------------------------------------------------------------
def test_rate_by_hand():
    schedule = Schedule(100, lr=1.0, warmup=4, decay_share=0.5)
    assert [schedule.rate(i) for i in (0, 1, 3, 50)] == [0.25, 0.5, 1, 1]
    assert schedule.rate(75) == 0.5
    assert schedule.rate(99) == 0.05
    with pytest.raises(ValueError, match="iterations is 0"):
        Schedule(0, 1.0)


def test_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = Averager(model, decay=0.5)
    nn.init.constant_(model.weight, 1.0)
    average.update(model, 0)  # decay 0.1
    assert average.model.weight.item() == pytest.approx(0.9)
    average.update(model, 1000)
    assert average.model.weight.item() == pytest.approx(0.95)


def run_vae(scenes, folder, iterations, stop_at=None, resume=False):
    """Runs a short training, optionally ended early or resumed from its checkpoint."""
    torch.manual_seed(0)
    vae = build_pipeline(SIZES, "sd21").vae
    schedule = Schedule(iterations, 1e-3, warmup=2, log_every=2)
    loss = AutoencoderLoss(vae, scenes, 2)
    stage = Stage("vae", vae, loss, schedule, folder, seed=3)
    if resume:
        assert stage.load()
    for _ in range((stop_at or iterations) - stage.iteration):
        stage._step()
    stage.save()
    return stage


def test_resumes_bit_for_bit(scenes, tmp_path):
    whole = run_vae(scenes, tmp_path / "a", 6)
    run_vae(scenes, tmp_path / "b", 6, stop_at=3)
    rest = run_vae(scenes, tmp_path / "b", 6, resume=True)
    assert rest.iteration == 6
    for one, two in ((whole.model, rest.model), (whole.average.model, rest.average.model)):
        two = two.state_dict()
        assert all(torch.equal(value, two[key]) for key, value in one.state_dict().items())


def test_checkpoint_of_another_training_is_refused(scenes, tmp_path):
    run_vae(scenes, tmp_path, 2)
    vae = build_pipeline(SIZES, "sd21").vae
    other = Stage("vae", vae, None, Schedule(9, 1e-3), tmp_path, seed=3)
    with pytest.raises(ValueError, match=r"iterations was 2, is 9.*--resume"):
        other.load()
    (tmp_path / "vae.pt").write_bytes(b"half a fi")
    with pytest.raises(ValueError, match=r"vae\.pt.*--resume"):
        other.load()
    (tmp_path / "vae.pt").unlink()
    assert not other.load()


def test_loss_that_is_not_finite_ends_the_training():
    model = nn.Linear(1, 1)
    stage = Stage("x", model, lambda g: {"a": model.weight.sum() * math.nan}, Schedule(1, 1.0))
    with pytest.raises(FloatingPointError, match="loss of x is nan at iteration 0"):
        stage.run(progress=False)


# ---- stages ------------------------------------------------------------------------------------
def test_autoencoder_learns(scenes):
    torch.manual_seed(0)
    vae = build_pipeline(SIZES, "sd21").vae
    loss = AutoencoderLoss(vae, scenes, 2)
    crops = loss.draw(torch.Generator().manual_seed(0))
    assert crops.shape == (2, 3, CROP, CROP) and -1 <= crops.min() < crops.max() <= 1
    stage = Stage("vae", vae, loss, Schedule(30, 5e-3, warmup=1, log_every=10))
    stage.run(progress=False)
    first, *_, last = (sum(means.values()) for means in stage.history)
    assert last < 0.8 * first


@pytest.mark.slow
def test_denoiser_learns(scenes):
    pipeline, loss = make_denoising(scenes)
    model = trained_parts(pipeline)

    def same_batch(generator):
        return loss(torch.Generator().manual_seed(0))

    stage = Stage("denoiser", model, same_batch, Schedule(24, 1e-2, warmup=1, log_every=6))
    stage.run(progress=False)
    assert stage.history[-1]["v"] < 0.9 * stage.history[0]["v"]
    frozen = [name for name, weight in stage.model.named_parameters() if weight.grad is None]
    assert not frozen


def test_scaled_latents_have_variance_one(scenes):
    pipeline, loss = make_denoising(scenes)
    mean, std = (pipeline.vae.config.scaling_factor * loss.moments).chunk(2, dim=1)
    sample = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    assert sample.std() == pytest.approx(1, abs=0.05)


def test_captions_belong_to_their_crops(scenes):
    _, loss = make_denoising(scenes, person_share=1.0, drop_share=0.0, whole_every=0)
    generator = torch.Generator().manual_seed(5)
    latents, captions = loss.draw(np.random.default_rng(0), generator)
    assert latents.shape == (8, 4, 8, 8)
    assert sum("street" not in caption for caption in captions) >= 4
    _, loss = make_denoising(scenes, drop_share=1.0)
    _, captions = loss.draw(np.random.default_rng(0), generator)
    assert set(captions) == {""}


def test_blind_timesteps_are_given_as_zero(scenes):
    pipeline, loss = make_denoising(scenes, blind_share=1.0)
    given = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: given.append(args[1]))
    loss(torch.Generator().manual_seed(0))
    assert not given[0].any()
    low = make_denoising(scenes, low_share=1.0, low_steps=3)[1]
    assert low._draw_timesteps(500, torch.Generator().manual_seed(0)).unique().tolist() == [0, 1, 2]


def test_wrong_options_are_refused(scenes):
    with pytest.raises(ValueError, match="crop is 12 cells.*multiple of 8"):
        DenoisingOptions(crop=12)
    with pytest.raises(ValueError, match="drop_share is -1"):
        DenoisingOptions(drop_share=-1)
    pipeline, loss = make_denoising(scenes)
    with pytest.raises(ValueError, match="crop is 16 cells, but the scenes have 8 x 16"):
        DenoisingLoss(pipeline, scenes, loss.moments, DenoisingOptions(crop=16))


@pytest.mark.slow
# ---- all of it ---------------------------------------------------------------------------------
def test_whole_training_resumes_and_its_folder_loads(work, tmp_path):
    before = torch.get_rng_state()
    training = PriorTraining(OPTIONS, work, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert not PriorTraining(OPTIONS, work, minutes=1e-9, progress=False).run()
    assert training.run()
    training.save(tmp_path / "model")

    again = PriorTraining(OPTIONS, work, resume=True, progress=False)
    assert again.run()
    ours, theirs = (t.pipeline.unet.state_dict() for t in (training, again))
    assert all(torch.equal(ours[key].float(), theirs[key].half().float()) for key in ours)

    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["iterations"] == {"vae": 2, "denoiser": 2}
    scheduler = json.loads((tmp_path / "model/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    features = tiny_backbone(tmp_path / "model", ATTN__HEADS=[])(torch.zeros(1, 3, 64, 64))
    assert features["u3r0_k"].shape == (1, 8, 8, 8)
