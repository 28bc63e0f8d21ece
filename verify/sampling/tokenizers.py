"""transformers' tokenizers from the files that artifacts and checkpoints have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.components import MAX_TOKENS
from convert.errors import InputError
from convert.files.json_files import read_object, read_text
from convert.process.interrupts import require_uninterrupted
from verify.reference.reference import quiet


def tokenizer(folder: Path, pad_token: str, added: Sequence[Mapping[str, Any]] = ()) -> Any:
    """transformers' CLIPTokenizer from a folder's vocab.json and merges.txt.

    Args:
        added: of a manifest, the tokens beside the vocabulary. A checkpoint's own folder has them
            in files that transformers reads, an artifact's chains some of them with merges for the
            apps (`convert.tokenizer.app`), which are left out here.
    """
    from transformers import CLIPTokenizer

    options: dict[str, Any] = {"pad_token": pad_token, "model_max_length": MAX_TOKENS}
    with quiet():
        try:
            found = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **options)
            if all(found.added_tokens_encoder.get(t["content"]) == t["id"] for t in added):
                return found
            return _with_added(folder, added, options)
        except InputError:
            raise
        except Exception as error:  # the library raises whatever its Rust half does
            require_uninterrupted()
            raise InputError(f"transformers cannot read it: {error}", where=folder) from error


def _with_added(folder: Path, added: Sequence[Mapping[str, Any]], options: dict[str, Any]) -> Any:
    from transformers import AddedToken, CLIPTokenizer

    size = min(int(token["id"]) for token in added)
    vocab = {t: i for t, i in read_object(folder / "vocab.json").items() if i < size}
    lines = read_text(folder / "merges.txt").splitlines()
    pairs = [line.split() for line in lines if not line.startswith("#version")]
    merges = [(a, b) for a, b in pairs if a + b in vocab]
    found = CLIPTokenizer(vocab=vocab, merges=merges, **options)
    for token in sorted(added, key=lambda t: int(t["id"])):
        flags = {k: v for k, v in token.items() if k not in ("id", "content")}
        found.add_tokens([AddedToken(token["content"], **flags)], special_tokens=token["special"])
        if found.added_tokens_encoder.get(token["content"]) != token["id"]:
            raise InputError(
                f"the added token `{token['content']}` cannot have the id {token['id']}",
                where=folder,
            )
    return found
