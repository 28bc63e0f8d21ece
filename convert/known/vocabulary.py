"""CLIP's tokenizers of SDXL, built from OpenAI's list of merges.

The list is that of open_clip 3.3.0 (`bpe_simple_vocab_16e6.txt.gz`, MIT licence beside it), which
says all that `vocab.json` and `merges.txt` do: both come out byte for byte as SDXL's repos hold
them. The two tokenizers differ in their padding alone.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

from convert.known.documents import document
from convert.tokenizer.bpe import END, START, byte_letters
from convert.tokenizer.clip import TOKENIZERS, Tokenizer

ROWS = 49408  # embeddings that a text encoder with this vocabulary has
_MERGES = Path(__file__).with_name("clip") / "merges.txt.gz"


@cache
def merges_text() -> str:
    """merges.txt."""
    return gzip.decompress(_MERGES.read_bytes()).decode()


@cache
def vocabulary_text() -> str:
    """vocab.json: the bytes, the same ending a word, one token a merge, start and end of text."""
    letters = byte_letters()
    merged = [line.replace(" ", "") for line in merges_text().splitlines()[1:]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    ids = {token: number for number, token in enumerate(tokens)}
    return json.dumps(ids, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def known_tokenizer(name: str) -> Tokenizer:
    """One of SDXL's two tokenizers, as `convert.tokenizer.clip.read_tokenizer` reads its folder."""
    assert name in TOKENIZERS
    settings = document(name)
    pad, length = settings["pad_token"], settings["model_max_length"]
    return Tokenizer(vocabulary_text(), merges_text(), pad_token=pad, max_length=length)


def tokenizer_documents(name: str) -> dict[str, str]:
    """The files of the tokenizer's folder, by their path in a checkpoint."""
    return {
        f"{name}/vocab.json": vocabulary_text(),
        f"{name}/merges.txt": merges_text(),
        f"{name}/tokenizer_config.json": _pretty(name),
        f"{name}/special_tokens_map.json": _pretty(f"{name}_special_tokens"),
    }


def _pretty(name: str) -> str:
    return json.dumps(document(name), indent=2) + "\n"
