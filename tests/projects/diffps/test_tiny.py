# SPDX-License-Identifier: Apache-2.0
"""The tiny Stable Diffusion folder: real classes of small size, loadable by diffusers."""

from pathlib import Path

import pytest
import torch
from programs import run_program_file
from safetensors.torch import load_file

from diffps.tiny import (
    WORDS,
    TinySizes,
    build_tokenizer,
    build_vocabulary,
    write_random_like,
    write_tiny_diffusion,
)


def read_unet(folder):
    return load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_plain_diffusers_loads_and_runs_it(family, request):
    from diffusers import StableDiffusionPipeline

    folder = request.getfixturevalue({"sd15": "tiny_sd15", "sd21": "tiny_sd"}[family])
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        "a person", num_inference_steps=1, height=64, width=64, output_type="np"
    ).images
    assert images.shape == (1, 64, 64, 3)


def test_plain_diffusers_loads_the_xl_shape(tiny_sdxl):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tiny_sdxl)
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline"
    assert pipeline.unet.config.cross_attention_dim == 2 * TinySizes().text_width


def test_is_small(tiny_sd):
    assert sum(p.stat().st_size for p in Path(tiny_sd).rglob("*") if p.is_file()) < 2e6


def test_seed_sets_the_weights_and_leaves_the_global_state(tmp_path, tiny_sd):
    before = torch.get_rng_state()
    again = read_unet(write_tiny_diffusion(tmp_path / "again", seed=0))
    other = read_unet(write_tiny_diffusion(tmp_path / "other", seed=1))
    assert torch.equal(before, torch.get_rng_state())
    first = read_unet(tiny_sd)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def test_every_word_is_one_token():
    tokenizer = build_tokenizer()
    for word in WORDS:
        ids = tokenizer(word).input_ids
        assert len(ids) == 3 and tokenizer.decode(ids[1]).strip() == word
        assert ids[0] == tokenizer.bos_token_id and ids[2] == tokenizer.eos_token_id


def test_other_words_are_spelled_and_come_back():
    tokenizer = build_tokenizer()
    ids = tokenizer("zebra, 7!").input_ids[1:-1]
    assert len(ids) > 3
    assert tokenizer.decode(ids).replace(" ", "") == "zebra,7!"


def test_later_words_leave_earlier_ones_whole():
    # "se" is joined first in both, so "shoes" must be built on top of what "sesame" needs
    words = ["sesame", "shoes", "hoe", "roses", "oses"]
    for count in range(1, len(words) + 1):
        tokenizer = build_tokenizer(words[:count])
        assert all(len(tokenizer(word).input_ids) == 3 for word in words[:count])


def test_vocabulary_has_all_bytes_and_no_gaps():
    vocabulary, merges = build_vocabulary(["person"])
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) == 512 + len(merges) + 2
    assert ["".join(pair) for pair in merges] == ["pe", "per", "pers", "perso", "person</w>"]


def test_unknown_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sd3.*sd15.*sd21.*sdxl"):
        write_tiny_diffusion(tmp_path, family="sd3")


def test_the_command(tmp_path, capsys):
    tool = "projects/DiffPS/tools/make_tiny_diffusion.py"
    assert run_program_file(tool, tmp_path / "x") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'x'}: 1.")
    assert (tmp_path / "x" / "model_index.json").is_file()
    for arguments in (["--like", tmp_path / "none"], ["--keep", "vae"]):
        assert run_program_file(tool, tmp_path / "y", *arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_text_encoders_are_saved_for_all_versions_of_transformers(tiny_sd, tiny_sdxl):
    """transformers 5 omits the prefix that earlier versions require."""
    for folder in (tiny_sd, tiny_sdxl):
        for file in Path(folder).glob("text_encoder*/model.safetensors"):
            names = {name.split(".")[0] for name in load_file(file)}
            assert names <= {"text_model", "text_projection"} and "text_model" in names


# ---- random copies -----------------------------------------------------------------------------
def test_random_copy_has_the_shape_and_other_weights(tmp_path, tiny_sd):
    copy = write_random_like(tiny_sd, tmp_path / "copy", seed=5)
    ours, theirs = read_unet(copy), read_unet(tiny_sd)
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }
    assert not torch.equal(ours["conv_in.weight"], theirs["conv_in.weight"])
    names = {str(p.relative_to(tiny_sd)) for p in Path(tiny_sd).rglob("*") if p.is_file()}
    assert names == {str(p.relative_to(copy)) for p in Path(copy).rglob("*") if p.is_file()}


def test_random_copy_keeps_the_parts_asked_for(tmp_path, tiny_sd):
    copy = write_random_like(tiny_sd, tmp_path / "copy", seed=5, keep=["vae", "text_encoder"])
    whole = write_random_like(tiny_sd, tmp_path / "whole", seed=5)
    vae = Path("vae/diffusion_pytorch_model.safetensors")
    text = Path("text_encoder/model.safetensors")
    for part in (vae, text):
        kept, old = load_file(Path(copy) / part), load_file(Path(tiny_sd) / part)
        assert all(torch.equal(kept[key], old[key]) for key in old)
        drawn = load_file(Path(whole) / part)
        assert any(not torch.equal(drawn[key], old[key]) for key in old)
    ours, others = read_unet(copy), read_unet(whole)
    assert all(torch.equal(ours[key], others[key]) for key in ours)


def test_random_copy_of_nothing_is_refused(tmp_path, tiny_sd):
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        write_random_like(tmp_path, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"\['decoder'\].*unet.*vae"):
        write_random_like(tiny_sd, tmp_path / "copy", keep=["decoder"])
