"""Trained tokens reach the vocabulary that apps read where apps can use them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from convert.tokenizer.app import app_files, chained
from convert.tokenizer.clip import Tokenizer, read_tokenizers
from release.lint.lint import lint_bundle
from release.lint.tree import FolderTree
from release.pack.bundle import make_bundle
from tests.support.checkpoints import EOS, write_json, write_tokenizer
from tests.support.packages import edit_manifest
from verify.mil import load_program
from verify.reference.reference import quiet
from verify.sampling.tokenizers import tokenizer

TOKENS = {"<mine>": EOS + 1, "lowred": EOS + 2, "ThZ": EOS + 3, "horse": EOS + 4, "zx": EOS + 5}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two tokenizers with the same trained tokens, as a textual inversion leaves them."""
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        write_tokenizer(tmp_path / name, pad)
        write_json(tmp_path / name / "added_tokens.json", TOKENS)
    return tmp_path


def shipped(tokenizers: dict[str, Tokenizer], folder: Path) -> Path:
    folder.mkdir()
    for name, text in app_files(tokenizers).items():
        (folder / name).write_text(text, "utf-8")
    return folder


def as_swift(folder: Path, prompt: str) -> list[int]:
    """The ids of Apple's Swift package: BPETokenizer.swift, tokenize(input:) without padding."""
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    ranks: dict[tuple[str, ...], int] = {}
    for index, line in enumerate((folder / "merges.txt").read_text("utf-8").split("\n")[:-1]):
        if line and not line.startswith("#"):
            ranks[tuple(line.split(" "))] = index
    ids = []
    for word in prompt.strip().lower().split():
        tokens = [*word[:-1], word[-1] + "</w>"]
        while can := [pair for pair in pairwise(tokens) if pair in ranks]:
            best, merged = min(can, key=lambda pair: ranks[pair]), []
            while tokens:
                if tuple(tokens[:2]) == best:
                    merged.append("".join(best))
                    tokens = tokens[2:]
                else:
                    merged.append(tokens.pop(0))
            tokens = merged
        ids += [vocab.get(token, vocab["<|endoftext|>"]) for token in tokens]
    return ids


def test_apple_s_package_finds_the_tokens_that_one_merge_makes(
    checkpoint: Path, tmp_path: Path
) -> None:
    tokenizers = read_tokenizers(checkpoint, {})
    folder = shipped(tokenizers, tmp_path / "shipped")
    # `<mine>` is six pieces, `horse` is a word that has a token already.
    assert chained(tokenizers) == {
        "lowred": ("lowr", "ed</w>"), "ThZ": ("th", "z</w>"), "zx": ("z", "x</w>"),
    }  # fmt: skip
    assert as_swift(folder, "a zx lowred thz") == [320, EOS + 5, EOS + 2, EOS + 3]
    plain = "the horse and a low red thing"
    write_tokenizer(tmp_path / "plain", "!")
    assert as_swift(folder, plain) == as_swift(tmp_path / "plain", plain)


def test_pipelines_read_of_the_shipped_files_what_transformers_reads_of_the_checkpoint(
    checkpoint: Path, tmp_path: Path
) -> None:
    tokenizers = read_tokenizers(checkpoint, {})
    folder = shipped(tokenizers, tmp_path / "shipped")
    added = [token.to_json() for token in tokenizers["tokenizer"].added]
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        with quiet():
            theirs = CLIPTokenizer.from_pretrained(checkpoint / name, local_files_only=True)
        for prompt in ("<mine> on a horse", "lowred, ThZ and zx!", "xlowred thzs <min>", ""):
            expected = theirs(prompt, padding="max_length")["input_ids"]
            found = tokenizer(folder, pad, added)(prompt, padding="max_length")["input_ids"]
            assert found == expected, prompt


def test_a_token_that_one_text_encoder_lacks_is_in_no_vocabulary_for_both(
    checkpoint: Path,
) -> None:
    write_json(checkpoint / "tokenizer_2" / "added_tokens.json", {"zx": EOS + 1})
    tokenizers = read_tokenizers(checkpoint, {})
    assert chained(tokenizers) == {}
    assert app_files(tokenizers)["vocab.json"] == tokenizers["tokenizer"].vocab


def test_guernika_finds_them_in_the_text_encoders_of_a_bundle(
    checkpoint: Path, artifact: Path, tmp_path: Path
) -> None:
    tokenizers = read_tokenizers(checkpoint, {})
    manifest = json.loads((artifact / "manifest.json").read_text())
    added = {name: [t.to_json() for t in found.added] for name, found in tokenizers.items()}
    edit_manifest(artifact, pipeline={**manifest["pipeline"], "added_tokens": added})
    folder = tmp_path / manifest["artifact"]
    folder.mkdir()
    bundle = make_bundle(artifact, folder)
    for name in ("TextEncoder", "TextEncoder2"):
        file = f"{name}.mlmodelc/added_vocab.json"
        assert json.loads((folder / file).read_text("utf-8")) == TOKENS
        assert file in bundle["files"]
        load_program(folder / f"{name}.mlmodelc")
    assert not list((folder / "Unet.mlmodelc").glob("added*"))
    assert {f.rule for f in lint_bundle(FolderTree(folder)).findings} == {"unverified"}
