# SPDX-License-Identifier: Apache-2.0
"""Encoding of text, and its file."""

import shutil

import pytest
import torch
from diffps_tiny import tiny_backbone, tiny_backbone_cfg
from programs import run_program_file
from safetensors.torch import save_file

from diffps.loading import DiffusionFolder
from diffps.text import encode_text, load_text, save_text
from diffps.tiny import write_tiny_diffusion

WORDS = ["head", "shoes"]


# ---- encoding -----------------------------------------------------------------------------------
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
    with pytest.raises(ValueError, match=r"'a person' has 2 tokens: \['a', 'person'\].*ATTN.WORD"):
        tiny_backbone(tiny_sd, PROMPT="a person")
    folder = DiffusionFolder(tiny_sd)
    assert encode_text(folder, "a person with shoes", map_word="shoes").token == 4
    assert encode_text(folder, "a person").token == 1  # without a map any prompt is valid


def test_words_that_cannot_be_used(tiny_sd):
    folder = DiffusionFolder(tiny_sd)
    with pytest.raises(ValueError, match="'zebra'.*has 4 tokens"):
        encode_text(folder, "a zebra", map_word="zebra")
    with pytest.raises(ValueError, match="'hat' is not in the prompt 'a person'"):
        encode_text(folder, "a person", map_word="hat")
    with pytest.raises(ValueError, match="'two hats'.*SFAN.PARTS"):
        encode_text(folder, "person", ["two hats"])


def test_prompt_that_is_too_long(tiny_sd):
    with pytest.raises(ValueError, match="has 102 tokens; the text encoder takes 77"):
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


# ---- file ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def unet(tiny_sd):
    return DiffusionFolder(tiny_sd).load_unet(torch.float32, "any")


@pytest.fixture(scope="module")
def file(tiny_sd, unet, tmp_path_factory):
    """The prompt "a person with shoes" and two words."""
    path = str(tmp_path_factory.mktemp("text") / "text.safetensors")
    text = encode_text(DiffusionFolder(tiny_sd), "a person with shoes", WORDS, map_word="shoes")
    save_text(path, text, "a person with shoes", unet)
    return path


def test_gives_what_the_encoder_gives(tiny_sd, unet, file):
    expected = encode_text(DiffusionFolder(tiny_sd), "a person with shoes", WORDS, "person")
    got = load_text(file, "a person with shoes", WORDS, "person", unet)
    assert torch.equal(got.context, expected.context) and got.pooled is None
    assert (got.token, expected.token) == (2, 2) and got.positions == expected.positions
    assert got.positions == {"a": 1, "person": 2, "with": 3, "shoes": 4}
    for word in WORDS:
        assert torch.equal(got.word_vectors[word], expected.word_vectors[word])


def test_pooled_text_of_sdxl(tiny_sdxl, tmp_path):
    folder, path = DiffusionFolder(tiny_sdxl), str(tmp_path / "text.safetensors")
    unet, text = folder.load_unet(torch.float32, "any"), encode_text(folder, "person")
    save_text(path, text, "person", unet)
    assert torch.equal(load_text(path, "person", [], "", unet).pooled, text.pooled)


@pytest.mark.parametrize(
    "prompt, words, map_word, message",
    [
        ("person", WORDS, None, "holds the prompt 'a person with shoes', but BACKBONE.PROMPT is"),
        ("a person with shoes", ["head", "hat"], None, r"lacks the words \['hat'\].*'head'"),
        ("a person with shoes", [], "hat", "no single token 'hat'.*'a', 'person'"),
        ("a person with shoes", [], "", "no single token 'a person with shoes'.*ATTN.WORD"),
    ],
)
def test_what_is_missing_is_refused(unet, file, prompt, words, map_word, message):
    with pytest.raises(ValueError, match=f"TEXT_EMBEDS_FILE.*{message}.*encode_text.py"):
        load_text(file, prompt, words, map_word, unet)


def test_pieces_of_words_are_not_words(tiny_sd):
    positions = encode_text(DiffusionFolder(tiny_sd), "a zebra").positions  # z e b r a
    assert positions["a"] == 1 and not {"z", "e", "zebra"} & set(positions)


def test_a_file_of_another_model_is_refused(file, tmp_path):
    other = write_tiny_diffusion(tmp_path / "other", seed=1)
    unet = DiffusionFolder(other).load_unet(torch.float32, "any")
    with pytest.raises(ValueError, match="written for another model than BACKBONE.MODEL"):
        load_text(file, "a person with shoes", [], None, unet)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_of_the_weights_does_not_matter(tiny_sd, file, dtype, tmp_path):
    prompt, folder = "a person with shoes", DiffusionFolder(tiny_sd)
    unet = folder.load_unet(dtype, "any")
    expected, got = encode_text(folder, prompt, WORDS), load_text(file, prompt, WORDS, None, unet)
    assert torch.equal(got.context, expected.context)
    assert got.positions == expected.positions
    for word in WORDS:
        assert torch.equal(got.word_vectors[word], expected.word_vectors[word])
    # the other model is refused in this type, too: its weights are compared, not left out
    other = write_tiny_diffusion(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="written for another model than BACKBONE.MODEL"):
        load_text(file, prompt, WORDS, None, DiffusionFolder(other).load_unet(dtype, "any"))


def test_other_files_are_refused(unet, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere'.*encode_text.py"):
        load_text("nowhere", "person", [], None, unet)
    broken, other = tmp_path / "broken", tmp_path / "other"
    broken.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        load_text(str(broken), "person", [], None, unet)
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="does not hold encoded text"):
        load_text(str(other), "person", [], None, unet)


def test_tool_and_backbone_without_a_text_encoder(tiny_sd, tmp_path, capsys):
    """The tool writes the file; the model then needs neither tokenizer nor text encoder."""
    config, output = tmp_path / "config.yaml", tmp_path / "text.safetensors"
    config.write_text(tiny_backbone_cfg(tiny_sd).dump())
    tool = "projects/DiffPS/tools/encode_text.py"
    assert run_program_file(tool, "--output", output, "--config-file", config) == 0
    assert "'person'" in capsys.readouterr().out
    bare = shutil.copytree(tiny_sd, tmp_path / "bare")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(bare / part)
    image = torch.rand(1, 3, 64, 64)
    expected, got = (
        tiny_backbone(folder, TEXT_EMBEDS_FILE=path)
        for folder, path in ((tiny_sd, ""), (bare, str(output)))
    )
    assert all(torch.equal(x, got(image)[name]) for name, x in expected(image).items())
    assert torch.equal(expected.word_vectors(["pants"]), got.word_vectors(["pants"]))
    with pytest.raises(FileNotFoundError, match="lacks the subfolder 'text_encoder'"):
        tiny_backbone(bare)
