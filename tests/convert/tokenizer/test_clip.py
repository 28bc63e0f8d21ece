"""A tokenizer is read, not only there: as transformers reads it, or one error naming the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from convert.errors import InputError
from convert.files.git_lfs import VERSIONS
from convert.tokenizer.clip import read_tokenizer, read_tokenizers
from tests.support.checkpoints import EOS, MERGES, write_json, write_tokenizer
from verify.reference.reference import quiet

START, END = "<|startoftext|>", "<|endoftext|>"
POINTER = VERSIONS[0] + b"v1\noid sha256:" + b"ab" * 32 + b"\nsize 524619\n"
TEXT = "the horse and <mine> TOK xyzzy 7!"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer", END)
    return tmp_path / "tokenizer"


def theirs(folder: Path) -> Any:
    with quiet():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def merges(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        file = folder / "merges.txt"
        file.write_bytes(change(file.read_bytes()))

    return edit


def vocab(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "vocab.json").read_text("utf-8"))
        write_json(folder / "vocab.json", change(values) or values)

    return edit


def config(**values: Any) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        write_json(file, {**json.loads(file.read_text()), **values})

    return edit


def added(tokens: Any) -> Callable[[Path], Any]:
    return lambda folder: write_json(folder / "added_tokens.json", tokens)


def beside(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """A tokenizer.json that transformers writes, changed, beside vocab.json and merges.txt."""

    def edit(folder: Path) -> None:
        with quiet():
            theirs(folder).save_pretrained(folder / "saved")
        values = json.loads((folder / "saved" / "tokenizer.json").read_text("utf-8"))
        change(values)
        write_json(folder / "tokenizer.json", values)
        shutil.rmtree(folder / "saved")

    return edit


def alone(folder: Path) -> None:
    beside(lambda v: None)(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


GOOD: dict[str, Callable[[Path], Any]] = {
    "as it is": lambda folder: None,
    "CRLF": merges(lambda b: b.replace(b"\n", b"\r\n")),
    "no version": merges(lambda b: b.split(b"\n", 1)[1]),
    "no last newline": merges(lambda b: b[:-1]),
    "a merge twice": merges(lambda b: b + b"t h\n"),
    "tokenizer.json alone": alone,
    "tokenizer.json beside": beside(lambda v: None),
    "added_tokens.json": added({"<mine>": EOS + 1, "TOK": EOS + 2}),
    "added in the vocabulary": added({END: EOS, "horse</w>": 526}),
    "decoder": config(
        added_tokens_decoder={
            str(EOS): {"content": END, "special": True, "normalized": False},
            str(EOS + 1): {"content": "<mine>", "lstrip": True, "normalized": True},
        }
    ),
    "special and unlisted": config(additional_special_tokens=["TOK", "<mine>"]),
    "of another padding": config(pad_token={"content": "!", "lstrip": False}),
}


@pytest.mark.parametrize("form", GOOD)
def test_a_tokenizer_means_what_transformers_makes_of_it(form: str, folder: Path) -> None:
    GOOD[form](folder)
    ours, expected = read_tokenizer(folder), theirs(folder)
    new = {t: i for t, i in expected.added_tokens_encoder.items() if i > EOS}
    assert {token.content: token.id for token in ours.added} == new
    for token in ours.added:
        flags = {k: v for k, v in token.to_json().items() if k not in ("content", "id")}
        assert flags == {k: getattr(expected.added_tokens_decoder[token.id], k) for k in flags}
    assert ours.size == len(expected)
    # The pad token of a bare folder is another default, so that it is given in both.
    shipped = folder.with_name("shipped")
    shipped.mkdir()
    (shipped / "vocab.json").write_text(ours.vocab, "utf-8")
    (shipped / "merges.txt").write_bytes(ours.merges.encode())
    assert ours.merges.endswith("\n")
    assert "\r" not in ours.merges
    assert ours.pad_token == expected.pad_token
    words = "the horse and a xyzzy 7?"
    assert theirs(shipped)(words)["input_ids"] == expected(words)["input_ids"]


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer": (merges(lambda b: POINTER), r"merges\.txt: is a Git LFS pointer"),
    "pointer of a vocabulary": (
        lambda folder: (folder / "vocab.json").write_bytes(POINTER),
        r"vocab\.json: is a Git LFS pointer",
    ),
    "empty": (merges(lambda b: b""), r"merges\.txt: holds no merges"),
    "only a version": (merges(lambda b: b"#version: 0.2\n"), r"merges\.txt: holds no merges"),
    "mark": (merges(lambda b: b"\xef\xbb\xbf" + b), r"merges\.txt: begins with a byte order mark"),
    "mark of a vocabulary": (
        lambda folder: (folder / "vocab.json").write_bytes(b"\xef\xbb\xbf{}"),
        r"vocab\.json: begins with a byte order mark",
    ),
    "latin-1": (merges(lambda b: b + "é a\n".encode("latin-1")), r"merges\.txt: is not UTF-8"),
    "UTF-16": (merges(lambda b: b.decode().encode("utf-16-le")), r"merges\.txt: line 1"),
    "old line ends": (merges(lambda b: b.replace(b"\n", b"\r")), r"merges\.txt: holds no merges"),
    "blank lines": (merges(lambda b: b.replace(b"\n", b"\n\n")), r"merges\.txt: line 2 is no pair"),
    "tabs": (merges(lambda b: b.replace(b" h", b"\th")), r"merges\.txt: line \d+ is no pair"),
    "three parts": (merges(lambda b: b + b"a b c\n"), r"line 22 is no pair of tokens: `a b c`"),
    "HTML": (merges(lambda b: b"<!DOCTYPE html>\n<p>"), r"line 1 merges .*lacks `<!DOCTYPE`"),
    "a result missing": (
        vocab(lambda v: {t: i - (i > 526) for t, i in v.items() if t != "horse</w>"}),
        r"line 16 merges `hors` and `e</w>`; vocab\.json lacks `horse</w>`",
    ),
    "another's merges": (merges(lambda b: b"x y\n" + b), r"line 1 .*lacks `xy`"),
    "any object": (lambda f: write_json(f / "vocab.json", {"a": 0}), r"it lacks `<\|startof"),
    "a list": (lambda f: write_json(f / "vocab.json", ["a"]), r"vocab\.json: holds a list"),
    "no JSON": (lambda f: (f / "vocab.json").write_text("{"), r"vocab\.json: not readable"),
    "an id twice": (vocab(lambda v: v.update(a=3)), "none of them the id 64: ids are 0 to 533"),
    "a gap": (vocab(lambda v: v.update({END: 900})), "none of them the id 533"),
    "a text for an id": (vocab(lambda v: v.update(a="3")), '`a` has the text "3" for an id'),
    "a fraction": (vocab(lambda v: v.update(a=3.5)), "`a` has the number 3.5"),
    "true": (vocab(lambda v: v.update(a=True)), "`a` has true for an id"),
    "an added gap": (added({"<mine>": EOS + 4}), "has the id 537; transformers gives it 534"),
    "an added collision": (added({"<mine>": 3}), "has the id 3; transformers gives it 534"),
    "another id": (added({END: 3}), r"`<\|endoftext\|>` has the id 3; transformers gives it 533"),
    "an added text": (added({"<mine>": "534"}), '`<mine>` has the text "534" for an id'),
    "a decoder of lists": (config(added_tokens_decoder=[1]), "holds a list where an object"),
    "a flag": (
        config(added_tokens_decoder={str(EOS + 1): {"content": "x y", "special": 1}}),
        "`special` of the added token `x y` is the number 1",
    ),
    "two tokenizers": (
        beside(lambda v: v["model"]["merges"].pop()),
        r"tokenizer\.json: holds another vocabulary, or other merges",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_tokenizer_is_one_error(fault: str, folder: Path) -> None:
    change, says = BAD[fault]
    change(folder)
    with pytest.raises(InputError, match=says):
        read_tokenizer(folder)


def test_every_token_has_an_embedding_in_its_text_encoder(folder: Path) -> None:
    write_tokenizer(folder.with_name("tokenizer_2"), "!")
    rows = {"tokenizer": EOS + 1, "tokenizer_2": EOS + 1}
    assert list(read_tokenizers(folder.parent, rows)) == ["tokenizer", "tokenizer_2"]
    with pytest.raises(InputError, match=r"tokenizer_2: has 534 .* text_encoder_2 has embeddings"):
        read_tokenizers(folder.parent, {**rows, "tokenizer_2": EOS})
    added({"<mine>": EOS + 1})(folder)
    with pytest.raises(InputError, match="has 535 tokens; text_encoder has embeddings of 534"):
        read_tokenizers(folder.parent, rows)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (merges(lambda b: b.replace(b"t h\na n\n", b"a n\nt h\n")), "list of merges"),
        (merges(lambda b: b[: b.rindex(b"low r")]), "list of merges"),
        (vocab(lambda v: v.update({"a": v["b"], "b": v["a"]})), "vocabulary"),
    ],
)
def test_a_second_vocabulary_is_refused(
    change: Callable[[Path], Any], what: str, folder: Path
) -> None:
    second = folder.with_name("tokenizer_2")
    write_tokenizer(second, "!")
    change(second)
    rows = {"tokenizer": EOS + 1, "tokenizer_2": EOS + 1}
    with pytest.raises(InputError, match=f"tokenizer_2: has another {what} than tokenizer/"):
        read_tokenizers(folder.parent, rows)


def test_a_second_tokenizer_in_another_spelling_is_the_same(folder: Path) -> None:
    second = folder.with_name("tokenizer_2")
    write_tokenizer(second, "!")
    merges(lambda b: b.replace(b"\n", b"\r\n"))(second)
    vocab(lambda v: dict(reversed(v.items())))(second)
    found = read_tokenizers(folder.parent, {})
    assert (
        found["tokenizer"].pairs
        == found["tokenizer_2"].pairs
        == tuple(tuple(m.split()) for m in MERGES)
    )
