"""Reading a CLIP tokenizer as transformers does, and refusing what is none.

Vocabulary and merges come from `vocab.json` and `merges.txt`, or from `tokenizer.json`. What is
refused here transformers 5.23 refuses, or reads as something that nobody has meant: merges that
make no token, two tokens of one id. Source: `TokenizersBackend`, and the BPE model of tokenizers.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convert.errors import InputError
from convert.files.json_files import (
    decode,
    kind,
    parse_json,
    read_bytes,
    read_object,
    require_object,
)
from convert.tokenizer.added_tokens import AddedToken, added_tokens, token_text
from convert.tokenizer.bpe import END, START
from convert.tokenizer.chain import Merge

TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
AGAIN = "Download the checkpoint again, or copy the folder from the model that it was made from."


@dataclass(frozen=True)
class Tokenizer:
    """One tokenizer of a checkpoint."""

    vocab: str  # JSON: token → id, 0 … n - 1
    merges: str  # ends in a newline, or Apple's Swift package drops the last merge
    added: tuple[AddedToken, ...] = ()  # their ids are n, n + 1, …
    pad_token: str = END
    max_length: float | None = None  # `model_max_length`; 1e30 and the like where nobody says

    @property
    def ids(self) -> Mapping[str, int]:
        """The vocabulary, without the added tokens."""
        return _ids(self.vocab)

    @property
    def pairs(self) -> tuple[Merge, ...]:
        """The merges, the first to be made first."""
        return tuple(_split(number, line) for number, line in _merge_lines(self.merges))

    @property
    def size(self) -> int:
        """How many tokens there are, the added ones among them."""
        return len(self.ids) + len(self.added)


@lru_cache(maxsize=8)  # SDXL's has a megabyte, is asked for often, and most checkpoints have it
def _ids(vocab: str) -> Mapping[str, int]:
    return MappingProxyType(json.loads(vocab))


def read_tokenizers(checkpoint: Path, rows: Mapping[str, int]) -> dict[str, Tokenizer]:
    """The tokenizers of a checkpoint, by their folders.

    Args:
        rows: of each one's text encoder, how many tokens it has embeddings of.

    Raises:
        InputError: as `read_tokenizer` does; a token without an embedding; or they differ, while
            apps read one vocabulary for both text encoders.
    """
    folders = {name: checkpoint / name for name in TOKENIZERS if (checkpoint / name).is_dir()}
    found = {name: read_tokenizer(folder) for name, folder in folders.items()}
    for name, tokenizer in found.items():
        if tokenizer.size > rows.get(name, tokenizer.size):
            raise InputError(
                f"has {tokenizer.size} tokens; {TOKENIZERS[name]} has embeddings of {rows[name]}",
                where=folders[name],
                hint="Tokenizer and text encoder belong to different models, or one of them was "
                f"changed and not saved. {AGAIN}",
            )
    first = next(iter(found), "")
    for name in list(found)[1:]:
        for what, ours, theirs in (
            ("vocabulary", found[first].ids, found[name].ids),
            ("list of merges", found[first].pairs, found[name].pairs),
        ):
            if ours != theirs:
                raise InputError(
                    f"has another {what} than {first}/: apps read one vocabulary and one list of "
                    "merges for both text encoders",
                    where=folders[name],
                    hint=f"If a file was replaced by mistake: {AGAIN[0].lower()}{AGAIN[1:]}",
                )
    return found


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`.

    Raises:
        InputError: a file is missing, damaged or something else; merges and vocabulary do not
            belong together; an added token has another id than transformers gives it.
    """
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    whole_file = folder / "tokenizer.json"
    whole = _read_json(whole_file) if whole_file.exists() else None
    if vocab_file.exists() and merges_file.exists():
        vocab, merges = _text(vocab_file), _text(merges_file)
        where: tuple[Path, Path] = (vocab_file, merges_file)
    elif whole is not None:
        vocab, merges = _files_of(whole, whole_file)
        where = (whole_file, whole_file)
    else:
        raise InputError(
            "holds neither vocab.json and merges.txt nor tokenizer.json", where=folder, hint=AGAIN
        )
    ids = require_vocabulary(parse_json(vocab, where[0]), where[0])
    merges = require_merges(merges, ids, *where)
    if whole is not None and where[0] != whole_file:
        _require_same(whole, whole_file, ids, merges)
    config = _optional(folder / "tokenizer_config.json")
    special = config
    if "added_tokens_decoder" not in config:  # only then does transformers read the older files
        special = {**config, **_optional(folder / "special_tokens_map.json")}
    added = added_tokens(folder, config, special, whole, ids)
    pad = token_text(special.get("pad_token"), folder, "pad_token") or END
    if pad not in ids and all(token.content != pad for token in added):
        raise InputError(f"`pad_token` is `{pad}`, which is no token of it", where=folder)
    length = config.get("model_max_length")
    is_number = isinstance(length, int | float) and not isinstance(length, bool)
    if length is not None and not (is_number and 1 <= length <= 1e300):
        raise InputError(
            f"`model_max_length` is {kind(length)}; allowed is a number from 1 on",
            where=folder / "tokenizer_config.json",
        )
    return Tokenizer(vocab, merges, added, pad, length)


def require_vocabulary(value: Any, where: Path) -> dict[str, int]:
    """The vocabulary that a JSON value is: every id from 0 on once. Raises InputError."""
    ids = require_object(value, where)
    for token, number in ids.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputError(
                f"`{token}` has {kind(number)} for an id; allowed is a whole number", where=where
            )
    for token in (START, END):
        if token not in ids:
            raise InputError(
                f"is no vocabulary of CLIP: it lacks `{token}`", where=where, hint=AGAIN
            )
    if sorted(ids.values()) != list(range(len(ids))):
        missing = min(set(range(len(ids))) - set(ids.values()))
        raise InputError(
            f"has {len(ids)} tokens, and none of them the id {missing}: ids are 0 to "
            f"{len(ids) - 1}, each of one token",
            where=where,
            hint=AGAIN,
        )
    return ids


def require_merges(text: str, ids: Mapping[str, int], vocab: Path, where: Path) -> str:
    """The merges, with \\n after every line; raises InputError where they do not fit `ids`."""
    pairs = 0
    for number, line in _merge_lines(text) if text.strip() else []:
        try:
            first, second = _split(number, line)
        except ValueError as error:
            raise InputError(str(error), where=where, hint=AGAIN) from None
        for token in (first, second, first + second):
            if token not in ids:
                raise InputError(
                    f"line {number} merges `{first}` and `{second}`; {vocab.name} lacks `{token}`",
                    where=where,
                    hint=f"They are of two tokenizers, or damaged. {AGAIN}",
                )
        pairs += 1
    if not pairs:
        raise InputError("holds no merges", where=where, hint=AGAIN)
    text = text.replace("\r\n", "\n")
    return text if text.endswith("\n") else text + "\n"


def _merge_lines(text: str) -> list[tuple[int, str]]:
    """The lines that hold merges, numbered from 1."""
    lines = text.removesuffix("\n").split("\n")
    return [
        (number, line.removesuffix("\r"))
        for number, line in enumerate(lines, 1)
        if not line.startswith("#version")
    ]


def _split(number: int, line: str) -> Merge:
    parts = line.split(" ")
    if len(parts) != 2 or not all(parts):
        shown = line if len(line) < 60 else f"{line[:60]}…"
        raise ValueError(f"line {number} is no pair of tokens: `{shown}`")
    return parts[0], parts[1]


def _text(path: Path) -> str:
    """A file's text; raises InputError for what transformers cannot read either."""
    data = read_bytes(path)
    if data.startswith(codecs.BOM_UTF8):
        raise InputError(
            "begins with a byte order mark, which transformers takes for a part of the first entry",
            where=path,
            hint="Save it as UTF-8 without a mark.",
        )
    return decode(data, path)


def _read_json(path: Path) -> dict[str, Any]:
    return require_object(parse_json(_text(path), path), path)


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _files_of(whole: Mapping[str, Any], where: Path) -> tuple[str, str]:
    """vocab.json and merges.txt that say what a tokenizer.json says."""
    model = whole.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise InputError("is not a BPE tokenizer, as CLIP's is", where=where, hint=AGAIN)
    vocab, merges = require_object(model.get("vocab"), where), model.get("merges")
    pairs = []
    for index, pair in enumerate(merges if isinstance(merges, list) else []):
        text = " ".join(map(str, pair)) if isinstance(pair, list) else pair
        if not isinstance(text, str) or "\n" in text:
            raise InputError(f"`model.merges[{index}]` is {kind(pair)}, no pair", where=where)
        pairs.append(text)
    if not pairs:
        raise InputError("holds no merges", where=where, hint=AGAIN)
    return json.dumps(vocab, ensure_ascii=False), "\n".join(["#version: 0.2", *pairs]) + "\n"


def _require_same(
    whole: Mapping[str, Any], where: Path, ids: Mapping[str, int], merges: str
) -> None:
    """transformers reads tokenizer.json where there is one, older versions the other two."""
    vocab, text = _files_of(whole, where)
    other = Tokenizer(
        vocab, require_merges(text, require_vocabulary(json.loads(vocab), where), where, where)
    )
    same = other.ids == ids and other.pairs == Tokenizer("{}", merges).pairs
    if not same:
        raise InputError(
            "holds another vocabulary, or other merges, than vocab.json and merges.txt beside it",
            where=where,
            hint="Remove what does not belong to the text encoder.",
        )
