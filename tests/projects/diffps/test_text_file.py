# SPDX-License-Identifier: Apache-2.0
"""Encoded text in a file instead of a text encoder."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffps_tiny import tiny_backbone, tiny_backbone_cfg
from safetensors.torch import save_file

from diffps.loading import DiffusionFolder
from diffps.text import encode_text
from diffps.text_file import load_text, save_text
from diffps.tiny import write_tiny_diffusion

WORDS = ["head", "shoes"]


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
    with pytest.raises(ValueError, match=f"TEXT_EMBEDS_FILE.*{message}.*encode_diffps_text.py"):
        load_text(file, prompt, words, map_word, unet)


def test_pieces_of_words_are_no_words(tiny_sd):
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


def test_files_that_are_none(unet, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere'.*encode_diffps_text.py"):
        load_text("nowhere", "person", [], None, unet)
    broken, other = tmp_path / "broken", tmp_path / "other"
    broken.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        load_text(str(broken), "person", [], None, unet)
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="holds no encoded text"):
        load_text(str(other), "person", [], None, unet)


def test_tool_and_backbone_without_a_text_encoder(tiny_sd, tmp_path, capsys, repo_root):
    """The whole way: the tool writes, the model then needs neither tokenizer nor encoder."""
    config, output = tmp_path / "config.yaml", tmp_path / "text.safetensors"
    config.write_text(tiny_backbone_cfg(tiny_sd).dump())
    assert run_tool(repo_root, "encode_text", output, "--config-file", config) == 0
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
    with pytest.raises(FileNotFoundError, match="lacks the sub-folder 'text_encoder'"):
        tiny_backbone(bare)


def run_tool(repo_root: Path, name: str, *arguments) -> int:
    spec = importlib.util.spec_from_file_location(
        name, repo_root / "projects/DiffPS/tools" / f"{name}.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    argv, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        return tool.main()
    finally:
        sys.argv = argv
