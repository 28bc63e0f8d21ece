"""The toy checkpoint: what a real repo has, readable by diffusers, the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from convert.checkpoint import open_checkpoint
from convert.errors import InputError
from convert.toy import write_toy


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_toys_are_equal_byte_for_byte(toy: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "again")
    assert files(tmp_path / "again") == files(toy)


def test_it_opens_with_every_component(toy: Path) -> None:
    checkpoint = open_checkpoint(toy)
    assert checkpoint.components == (
        "text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder",
    )  # fmt: skip
    assert set(checkpoint.tokenizers) == {"tokenizer", "tokenizer_2"}


def test_its_tokenizer_is_clips(toy: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(toy / "tokenizer")
    vocab = json.loads((toy / "tokenizer" / "vocab.json").read_text("utf-8"))
    assert vocab["!"] == 0  # Apple's Swift package pads with it
    ids = tokenizer("a large red circle").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|startoftext|>", "a</w>", "large</w>", "red</w>", "circle</w>", "<|endoftext|>",
    ]  # fmt: skip
    unknown = tokenizer("zebra café 😀", padding="max_length").input_ids
    assert len(unknown) == 77
    assert max(unknown) < len(vocab)
    second = CLIPTokenizer.from_pretrained(toy / "tokenizer_2")
    assert second("red", padding="max_length").input_ids[-1] == 0


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        write_toy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
