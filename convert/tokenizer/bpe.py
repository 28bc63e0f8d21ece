"""A small CLIP tokenizer: byte-level BPE whose merges spell a given list of words.

The vocabulary is laid out as OpenAI's CLIP has it: 256 bytes, the same ending a word, one entry a
merge, start and end of text. So `!` is token 0, which Apple's Swift package pads with.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, words: Iterable[str], *, pad: str) -> int:
    """Write vocab.json, merges.txt and the settings files; returns the vocabulary's size.

    Args:
        folder: is made.
        words: lower-case words that become one token each.
        pad: the padding token, `<|endoftext|>` or `!`.
    """
    merges = learn_merges(words)
    letters = byte_letters()
    entries = [*letters, *(f"{b}</w>" for b in letters), *("".join(m) for m in merges), START, END]
    vocab = {entry: index for index, entry in enumerate(entries)}
    folder.mkdir(parents=True)
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    settings = {
        **special,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    for name, value in (("special_tokens_map", special), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    return len(vocab)


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes (GPT-2's bytes_to_unicode), in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one symbol."""
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for s in spelt for pair in pairwise(s)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [merge(symbols, best) for symbols in spelt]
    return merges


def merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with every occurrence of the pair as one."""
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out
