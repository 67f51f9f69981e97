# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion folders, valid and invalid."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffps_tiny import tiny_backbone
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
@pytest.mark.parametrize("model", ["/nowhere/sd", "./sd", "sd", "", "a/b/c", "é a/b", "o/x.ckpt"])
def test_a_path_that_does_not_exist(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder.*owner/name") as error:
        DiffusionFolder(model)
    assert f"current directory, {tmp_path}" in str(error.value)


def test_a_single_file_checkpoint(tmp_path):
    (tmp_path / "v2-1.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="is a file.*from_single_file.*save_pretrained"):
        DiffusionFolder(str(tmp_path / "v2-1.safetensors"))


def test_a_folder_with_symlinks_spaces_and_accents(tiny_sd, tmp_path):
    """As in a download of the hub: every file links to a blob, here below an unusual name."""
    target, blobs = tmp_path / "modèle à moi 模型", tmp_path / "blobs"
    blobs.mkdir()
    for index, file in enumerate(sorted(p for p in Path(tiny_sd).rglob("*") if p.is_file())):
        blob = shutil.copy(file, blobs / str(index))
        link = target / file.relative_to(tiny_sd)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    image = torch.rand(1, 3, 64, 64)
    expected = tiny_backbone(tiny_sd)(image)
    got = tiny_backbone(target, CACHE__KIND="latent", CACHE__DIR=str(tmp_path / "é cache"))(image)
    assert all(torch.equal(got[name], x) for name, x in expected.items())


def test_a_folder_without_an_index(tmp_path):
    (tmp_path / "v1-5.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"no\s+model_index.json.*v1-5.ckpt.*converted"):
        DiffusionFolder(str(tmp_path))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named_before_anything_is_loaded(broken, part):
    shutil.rmtree(broken / part)
    with pytest.raises(
        FileNotFoundError, match=f"lacks the subfolder '{part}'; it contains: model_in"
    ):
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


def test_missing_weights_are_an_error(broken):
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
    """Nothing is downloaded in tests."""
    folder = DiffusionFolder("owner/missing-model", local_files_only=True)
    with pytest.raises(USER_ERRORS) as error:
        folder.load_unet(torch.float32, "any")
    text = str(error.value)
    assert "is not a folder (relative paths start at the current directory, " in text
    assert "its part 'unet' is not available from the hub: it is not in the cache, and" in text
    assert "LOCAL_FILES_ONLY is True" in text and "config.json" not in text
    assert "set MODEL.DIFFPS.BACKBONE.MODEL to its folder" in text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(USER_ERRORS, match="not in the cache, and .*HF_HUB_OFFLINE is set"):
        DiffusionFolder("owner/missing-model").load_unet(torch.float32, "any")


# ---- parts that do not match --------------------------------------------------------------------
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


@pytest.mark.parametrize("family", ["tiny_sd", "tiny_sdxl"])
def test_text_encoders_saved_by_transformers_5(family, request, tmp_path):
    """Their names lack a prefix that transformers 4 requires."""
    source = request.getfixturevalue(family)
    folder = shutil.copytree(source, tmp_path / "sd")
    for file in folder.glob("text_encoder*/model.safetensors"):
        weights = {name.removeprefix("text_model."): x for name, x in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    expected, got = (encode_text(DiffusionFolder(str(x)), "person") for x in (source, folder))
    assert torch.equal(expected.context, got.context)
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    missing = next(name for name in weights if "layer_norm1" in name)
    del weights[missing]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights are not in the file.*{missing}"):
        DiffusionFolder(str(folder)).load_text_encoder()


def test_a_folder_with_one_variant_only(broken, caplog):
    names = {"unet": UNET_FILE, "vae": UNET_FILE, "text_encoder": "model.safetensors"}
    for part, name in names.items():
        file = broken / part / name
        file.rename(file.with_name(name.replace(".saf", ".fp16.saf")))
    with caplog.at_level("INFO", logger="diffps.loading"):
        unet = DiffusionFolder(str(broken)).load_unet(torch.float32, "any")
    assert "loading unet from its only variant, 'fp16'" in caplog.text
    assert torch.isfinite(unet.conv_in.weight).all()
    assert encode_text(DiffusionFolder(str(broken)), "person").context.shape == (1, 77, 32)
    with pytest.raises(FileNotFoundError, match=r"no variant 'ema'. Set .*VARIANT to 'fp16'\."):
        DiffusionFolder(str(broken), variant="ema").load_vae(torch.float32)
    file = broken / "unet" / UNET_FILE
    shutil.copy(file.with_name(UNET_FILE.replace(".saf", ".fp16.saf")),
                file.with_name(UNET_FILE.replace(".saf", ".non_ema.saf")))  # fmt: skip
    with pytest.raises(FileNotFoundError, match="no default weight files.*'fp16' or 'non_ema'"):
        DiffusionFolder(str(broken)).load_unet(torch.float32, "any")


def test_sharded_weights_of_a_variant(broken):
    """As ``save_pretrained`` writes large models: an index, and the variant before the number."""
    file = broken / "unet" / UNET_FILE
    weights = load_file(file)
    names = sorted(weights)
    parts = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {}
    for part, some in zip(parts, (names[::2], names[1::2]), strict=True):
        save_file({name: weights[name] for name in some}, file.with_name(part))
        index |= dict.fromkeys(some, part)
    file.unlink()
    file.with_name("diffusion_pytorch_model.safetensors.index.fp16.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    unet = DiffusionFolder(str(broken)).load_unet(torch.float32, "any")
    assert torch.equal(unet.conv_in.weight, weights["conv_in.weight"].float())


def test_loading_prints_nothing(tiny_sd, capfd):
    tiny_backbone(tiny_sd)
    captured = capfd.readouterr()
    assert not captured.out and not captured.err


def test_folders_as_they_are_published(broken, capfd):
    """Features that the tiny folder lacks: old names in the VAE, half-precision variants, another
    scheduler, unused weights, and parts marked as absent in the index."""
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
