"""SDXL's tokenizers come out of the package as its repos hold them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from convert.known.vocabulary import (
    ROWS,
    known_tokenizer,
    merges_text,
    tokenizer_documents,
    vocabulary_text,
)
from convert.tokenizer.clip import TOKENIZERS, read_tokenizer

# Of the files of stabilityai/stable-diffusion-xl-base-1.0, tokenizer/ and tokenizer_2/ alike.
VOCABULARY = "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"
MERGES = (524_619, "9fd691f7c8039210")


def test_the_vocabulary_is_sdxls_byte_for_byte() -> None:
    data = vocabulary_text().encode()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (1_059_962, VOCABULARY)
    data = merges_text().encode()
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == MERGES


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_a_known_tokenizer_is_what_is_read_of_its_files(tmp_path: Path, name: str) -> None:
    for place, text in tokenizer_documents(name).items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text, "utf-8")
    assert read_tokenizer(tmp_path / name) == known_tokenizer(name)
    assert known_tokenizer(name).size == ROWS


@pytest.mark.parametrize(
    ("name", "pad", "marks"), [("tokenizer", 49407, [995]), ("tokenizer_2", 0, [0, 0, 0])]
)
def test_transformers_pads_with_either_ones_own_token(
    tmp_path: Path, name: str, pad: int, marks: list[int]
) -> None:
    from transformers import CLIPTokenizer

    for place, text in tokenizer_documents(name).items():
        (tmp_path / Path(place).name).write_text(text, "utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer.pad_token_id == pad
    assert tokenizer("a cat!!!")["input_ids"] == [49406, 320, 2368, *marks, 49407]
