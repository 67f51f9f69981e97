# SPDX-License-Identifier: Apache-2.0
"""Folders of Stable Diffusion, good and bad, and the text that is encoded at build."""

import json
import shutil

import pytest
import torch
from diffps_tiny import tiny_backbone, tiny_backbone_cfg
from safetensors.torch import load_file, save_file

from diffps.loading import FAMILIES, DiffusionFolder, UNetShape, check_family, parse_dtype
from diffps.text import encode_text
from diffps.tiny import TinySizes, write_tiny_diffusion
from person_search.engine.errors import USER_ERRORS

UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def broken(tiny_sd, tmp_path):
    """A copy of the tiny folder that a test may damage."""
    return shutil.copytree(tiny_sd, tmp_path / "sd")


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- folders ------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["/nowhere/sd", "./sd", "sd", "", "a/b/c"])
def test_no_folder(model):
    with pytest.raises(FileNotFoundError, match="no such folder.*owner/name"):
        DiffusionFolder(model)


def test_a_folder_that_is_no_pipeline(tmp_path):
    (tmp_path / "v1-5.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"no\s+model_index.json.*v1-5.ckpt.*converted"):
        DiffusionFolder(str(tmp_path))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named_before_anything_is_loaded(broken, part):
    shutil.rmtree(broken / part)
    with pytest.raises(FileNotFoundError, match=f"lacks the sub-folder '{part}'; it has: model_in"):
        tiny_backbone(broken)


def test_missing_second_text_encoder_of_sdxl(tiny_sdxl, tmp_path):
    folder = shutil.copytree(tiny_sdxl, tmp_path / "sdxl")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(FileNotFoundError, match="'text_encoder_2'"):
        encode_text(DiffusionFolder(str(folder)), "person")


def test_damaged_weights(broken):
    path = broken / "unet" / UNET_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="'unet' cannot be loaded.*damaged") as error:
        DiffusionFolder(str(broken)).load_unet(torch.float32, "any")
    assert error.value.__cause__ is not None


def test_missing_weights_are_no_random_weights(broken):
    path = broken / "unet" / UNET_FILE
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path)
    with pytest.raises(ValueError, match="1 weights are not in the file, e.g. conv_in.weight"):
        DiffusionFolder(str(broken)).load_unet(torch.float32, "any")


def test_weights_that_contradict_the_config_of_the_folder(broken):
    edit_json(broken / "unet" / "config.json", block_out_channels=[16, 24, 32, 40])
    with pytest.raises(ValueError, match="'unet' cannot be loaded.*shape"):
        DiffusionFolder(str(broken)).load_unet(torch.float32, "any")


def test_hub_without_network(monkeypatch):
    """What the user reads who is offline; nothing is downloaded in tests."""
    folder = DiffusionFolder("nobody/nothing-at-all", local_files_only=True)
    with pytest.raises(USER_ERRORS) as error:
        folder.load_unet(torch.float32, "any")
    text = str(error.value)
    assert "no folder here, and 'unet' of it could not be had from the hub: it is not in" in text
    assert "LOCAL_FILES_ONLY is True" in text and "config.json" not in text
    assert "give the folder as MODEL.DIFFPS.BACKBONE.MODEL" in text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(USER_ERRORS, match="not in the cache, and the hub cannot be .*no network"):
        DiffusionFolder("nobody/nothing-at-all").load_unet(torch.float32, "any")


# ---- parts that do not fit ----------------------------------------------------------------------
def test_a_unet_of_another_family_than_the_config_says(tiny_sd):
    with pytest.raises(ValueError) as error:
        tiny_backbone(tiny_sd, FAMILY="sd21")
    text = str(error.value)
    assert "FAMILY is 'sd21'" in text and "(16, 24, 32, 32)" in text and "'any'" in text


def test_the_right_family_is_proposed():
    with pytest.raises(ValueError, match="Set FAMILY to 'sd15'"):
        check_family(FAMILIES["sd15"], "sd21", "x")
    with pytest.raises(ValueError, match="allowed: sd15, sd21, sdxl, any"):
        check_family(FAMILIES["sd15"], "sd14", "x")


def test_shape_is_read_as_diffusers_reads_it():
    config = {"block_out_channels": [8, 16], "attention_head_dim": 4, "cross_attention_dim": 24}
    assert UNetShape.of_config(config) == UNetShape((8, 16), (4, 4), 24)
    config |= {"attention_head_dim": [2, 4]}
    assert UNetShape.of_config(config).heads == (2, 4)


def test_a_unet_for_inpainting(broken):
    edit_json(broken / "unet" / "config.json", in_channels=9)
    path = broken / "unet" / UNET_FILE
    weights = load_file(path)
    weights["conv_in.weight"] = torch.zeros(16, 9, 3, 3, dtype=torch.float16)
    save_file(weights, path)
    with pytest.raises(ValueError, match="UNet takes 9 channels, its VAE gives 4"):
        tiny_backbone(broken)


def test_text_of_another_width(broken, tmp_path):
    other = write_tiny_diffusion(tmp_path / "other", sizes=TinySizes(text_width=48))
    shutil.rmtree(broken / "text_encoder")
    shutil.copytree(f"{other}/text_encoder", broken / "text_encoder")
    with pytest.raises(ValueError, match="takes text of width 32, its text encoder gives 48"):
        tiny_backbone(broken)


def test_unknown_dtype():
    with pytest.raises(ValueError, match="DTYPE is 'half'; allowed: float16, bfloat16, float32"):
        parse_dtype("half")


# ---- what is loaded -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_weights_come_frozen_in_the_dtype_asked_for(tiny_sd, name):
    folder, dtype = DiffusionFolder(tiny_sd), parse_dtype(name)
    for model in (folder.load_unet(dtype, "any"), folder.load_vae(dtype)):
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_loading_says_nothing(tiny_sd, capfd):
    tiny_backbone(tiny_sd)
    captured = capfd.readouterr()
    assert not captured.out and not captured.err


def test_folders_as_they_are_published(broken, capfd):
    """What the tiny folder does not have: old names in the VAE, half-precision files of their own,
    another scheduler, weights that nothing uses, and parts that stand in the index as absent."""
    vae_file = broken / "vae" / UNET_FILE
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights, renamed = load_file(vae_file), {}
    for name, weight in weights.items():
        for new, former in old.items():
            if "attentions" in name:
                name = name.replace(f".{new}.", f".{former}.")
        renamed[name] = weight
    assert renamed.keys() != weights.keys()
    save_file(renamed, vae_file.with_name(UNET_FILE.replace(".saf", ".fp16.saf")))
    vae_file.unlink()
    for part, name in (("unet", UNET_FILE), ("text_encoder", "model.safetensors")):
        file = broken / part / name
        content = load_file(file)
        if part == "text_encoder":
            content["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(content, file.with_name(name.replace(".saf", ".fp16.saf")), {"format": "pt"})
        file.unlink()
    settings = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
    edit_json(broken / "scheduler" / "scheduler_config.json", **settings)
    index = {"safety_checker": [None, None], "text_encoder_2": [None, None]}
    edit_json(broken / "model_index.json", **index)

    capfd.readouterr()
    backbone = tiny_backbone(broken, VARIANT="fp16")
    captured = capfd.readouterr()
    assert not captured.out and not captured.err
    vae = backbone._frozen[0].state_dict()
    for name, weight in weights.items():
        if name in vae:
            torch.testing.assert_close(vae[name], weight.float())
    assert any("attentions.0.to_q" in name for name in vae)


# ---- text ---------------------------------------------------------------------------------------
def test_rows_are_position_one_of_each_words_own_prompt(tiny_sd):
    folder = DiffusionFolder(tiny_sd)
    text = encode_text(folder, "person", ["head", "shoes"], map_word="")
    tokenizer, encoder = folder.load_text_encoder()
    assert text.token == 1 and text.pooled is None
    assert list(text.word_vectors) == ["head", "shoes", "person"]
    for word, vector in text.word_vectors.items():
        ids = tokenizer(word, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = encoder(ids).last_hidden_state
        assert torch.equal(vector, expected[0, 1])
    assert torch.equal(text.context[0, 1], text.word_vectors["person"])
    assert text.context.shape == (1, 77, 32)


def test_sdxl_text_is_what_its_pipeline_makes(tiny_sdxl):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tiny_sdxl)
    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(
            "a person", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    text = encode_text(DiffusionFolder(tiny_sdxl), "a person", ["head"], map_word="person")
    torch.testing.assert_close(text.context, context)
    torch.testing.assert_close(text.pooled, pooled)
    assert text.token == 2 and text.word_vectors["head"].shape == (64,)


def test_prompt_of_several_tokens_needs_the_word(tiny_sd):
    with pytest.raises(ValueError, match=r"'a person' is 2 tokens: \['a', 'person'\].*ATTN.WORD"):
        tiny_backbone(tiny_sd, PROMPT="a person")
    folder = DiffusionFolder(tiny_sd)
    assert encode_text(folder, "a person with shoes", map_word="shoes").token == 4
    assert encode_text(folder, "a person").token == 1  # no map wanted: any prompt will do


def test_words_that_cannot_be_used(tiny_sd):
    folder = DiffusionFolder(tiny_sd)
    with pytest.raises(ValueError, match="'zebra'.*is 4 tokens"):
        encode_text(folder, "a zebra", map_word="zebra")
    with pytest.raises(ValueError, match="'hat' is not in the prompt 'a person'"):
        encode_text(folder, "a person", map_word="hat")
    with pytest.raises(ValueError, match="'two hats'.*SFAN.PARTS"):
        encode_text(folder, "person", ["two hats"])


def test_prompt_that_is_too_long(tiny_sd):
    with pytest.raises(ValueError, match="has 102 tokens; this text encoder takes 77"):
        encode_text(DiffusionFolder(tiny_sd), "person " * 100)


def test_parts_of_the_config_are_encoded(tiny_sd):
    cfg = tiny_backbone_cfg(tiny_sd, WORDS=["hat"])
    backbone = tiny_backbone(tiny_sd, WORDS=["hat"])
    parts = cfg.MODEL.DIFFPS.SFAN.PARTS
    assert backbone.word_vectors([*parts, "hat", "person"]).shape == (6, backbone.text_dim)
    one, two = backbone.word_vectors(["hat", "head"])
    assert torch.equal(backbone.word_vectors(["head"])[0], two) and not torch.equal(one, two)
    with pytest.raises(ValueError, match=r"no text vectors of \['dog'\].*BACKBONE.WORDS"):
        backbone.word_vectors(["head", "dog"])
