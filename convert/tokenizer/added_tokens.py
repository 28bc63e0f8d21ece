"""The tokens beside a CLIP vocabulary, such as those of a textual inversion.

They are found in a text before it is split, and their ids follow the vocabulary's, whatever the
files say. Source: transformers 5.23, `PreTrainedTokenizerBase._from_pretrained` and
`TokenizersBackend.__init__`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.json_files import kind, read_object, require_object

FLAGS = ("special", "normalized", "single_word", "lstrip", "rstrip")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class AddedToken:
    """A token beside the vocabulary, with the settings that tokenizers' AddedToken has."""

    content: str
    id: int
    special: bool = False
    normalized: bool = True  # found in the lower-cased text
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    def to_json(self) -> dict[str, Any]:
        """The tokens, as manifests have them."""
        return asdict(self)


def added_tokens(
    folder: Path,
    config: Mapping[str, Any],
    special: Mapping[str, Any],
    whole: Mapping[str, Any] | None,
    ids: Mapping[str, int],
) -> tuple[AddedToken, ...]:
    """The tokens that the vocabulary lacks; raises InputError for ids that transformers changes."""
    names = _special_tokens(folder, special)
    found: dict[str, AddedToken] = {}
    if "added_tokens_decoder" in config:
        where = folder / "tokenizer_config.json"
        for key, value in require_object(config["added_tokens_decoder"], where).items():
            number = int(key) if key.isdecimal() and len(key) < 10 else None
            token = _added_token(value, number, where)
            found[token.content] = token
    else:
        where = folder / "added_tokens.json"
        for content, number in (read_object(where) if where.exists() else {}).items():
            is_special = content in names
            flags = {"special": is_special, "normalized": not is_special}
            token = _added_token({"content": content, **flags}, number, where)
            found[content] = token
        where = folder / "tokenizer.json"
        listed = (whole or {}).get("added_tokens", [])
        for value in listed if isinstance(listed, list) else [listed]:
            token = _added_token(value, require_object(value, where).get("id"), where)
            found[token.content] = token
    for token in found.values():
        if ids.get(token.content, token.id) != token.id:
            raise _other_id(token, ids[token.content], folder)
    new = sorted((t for t in found.values() if t.content not in ids), key=lambda t: t.id)
    for number, token in enumerate(new, len(ids)):
        if token.id != number:
            raise _other_id(token, number, folder)
    unlisted = [name for name in names if name not in ids and name not in found]
    return (
        *new,
        *(
            AddedToken(name, number, special=True, normalized=False)
            for number, name in enumerate(unlisted, len(ids) + len(new))
        ),
    )


def _other_id(token: AddedToken, number: int, folder: Path) -> InputError:
    return InputError(
        f"the added token `{token.content}` has the id {token.id}; transformers gives it {number}",
        where=folder,
        hint="Ids of added tokens follow the vocabulary's without a gap, and each is of one row of "
        "the text encoder's embedding. Save the tokenizer again with transformers.",
    )


def _added_token(value: Any, number: Any, where: Path) -> AddedToken:
    values = require_object(value, where)
    content = values.get("content")
    if not isinstance(content, str) or not content:
        raise InputError(f"an added token is {kind(content)}; allowed is a text", where=where)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InputError(
            f"the added token `{content}` has {kind(number)} for an id; allowed is a whole number",
            where=where,
        )
    flags = {flag: values[flag] for flag in FLAGS if flag in values}
    for flag, found in flags.items():
        if not isinstance(found, bool):
            raise InputError(
                f"`{flag}` of the added token `{content}` is {kind(found)}; allowed is true or "
                "false",
                where=where,
            )
    flags.setdefault("normalized", not flags.get("special", False))
    return AddedToken(content, number, **flags)


def _special_tokens(folder: Path, special: Mapping[str, Any]) -> list[str]:
    """The contents of all special tokens, each once."""
    values = [(key, special.get(key)) for key in NAMED]
    for key in LISTED:
        listed = special.get(key)
        if isinstance(listed, dict):
            listed = list(listed.values())
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            values += [(key, value) for value in listed]
        elif listed is not None:
            raise InputError(f"`{key}` is {kind(listed)}; allowed is a list", where=folder)
    contents = (token_text(value, folder, key) for key, value in values)
    return list(dict.fromkeys(content for content in contents if content))


def token_text(value: Any, folder: Path, key: str) -> str | None:
    """A special token's text; it is written as such, or as an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise InputError(f"`{key}` is {kind(value)}; allowed is a text", where=folder)
    return value or None
