"""A checkpoint with embeddings added: rows below its token embeddings, and words that reach them.

Words, vocabulary and merges are the same for both text encoders, as in apps. The words' ids follow
the vocabulary's, in the order of embeddings and vectors, as diffusers gives them; what lies between
a word and its pieces comes after them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.checkpoint.configs import LEGACY_EOS
from convert.checkpoint.derived import rows
from convert.checkpoint.origin import AppliedEmbedding, AppliedLora, add_file
from convert.checkpoint.small_files import layout_name
from convert.checkpoint.tensors import Tensor
from convert.embedding.read import WIDTHS, EmbeddingFile, Inversion, read_both
from convert.embedding.rows import MeanRows, Stacked
from convert.embedding.words import Words, fitted, spell
from convert.errors import InputError
from convert.tokenizer.bpe import END, WORD_END
from convert.tokenizer.chain import Merge, Speller
from convert.tokenizer.clip import TOKENIZERS, Tokenizer

TABLE = "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Embedding:
    """An embedding's file, and the word that is to reach it."""

    path: Path
    token: str | None = None  # made of its own name or its file's if None


@dataclass(frozen=True)
class _Found:
    """An inversion that fits the checkpoint, with its words."""

    vectors: Mapping[str, Tensor]  # by text encoder; those that the checkpoint has
    words: Words


def apply(checkpoint: Checkpoint, embeddings: Sequence[Embedding]) -> Checkpoint:
    """Add embeddings to a checkpoint, in order; nothing but headers is read.

    Raises:
        InputError: a file that `read_embedding` refuses, or for another family; a word that cannot
            be one; a checkpoint whose tokenizers have trained tokens already.
    """
    if not embeddings:
        return checkpoint
    tokenizer = _tokenizer(checkpoint)
    speller = Speller(tokenizer.ids, tokenizer.pairs)
    files = dict(checkpoint.files)
    found: list[_Found] = []
    told: list[AppliedEmbedding] = []
    for number, embedding in enumerate(embeddings):
        file = read_both(embedding.path)
        for inversion in _asked(file, embedding.token):
            one, applied = _fitting(inversion, embedding, file, checkpoint, speller, told)
            paths = dict.fromkeys(path for tensor in one.vectors.values() for path in tensor.files)
            names = tuple(add_file(files, "embeddings", path) for path in paths)
            found.append(one)
            told.append(replace(applied, files=names, number=number))
    new = _New.of(found, tokenizer)
    parts = dict(checkpoint.parts)
    for name in _encoders(checkpoint):
        parts[name] = new.part(parts[name])
    extended = {name: new.tokenizer(own) for name, own in checkpoint.tokenizers.items()}
    unread = {f"{name}/tokenizer.json" for name in extended}  # says what vocab.json did
    return replace(
        checkpoint,
        parts=parts,
        tokenizers=extended,
        files={name: path for name, path in files.items() if layout_name(name) not in unread},
        documents={**checkpoint.documents, **_documents(extended, parts)},
        loras=tuple(_without_bundled(lora, checkpoint, embeddings) for lora in checkpoint.loras),
        embeddings=tuple(told),
        bare=checkpoint,
    )


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer; those of both text encoders have the same vocabulary and merges."""
    trained = [token.content for own in checkpoint.tokenizers.values() for token in own.added]
    if trained:
        raise InputError(
            f"has trained tokens of its own (`{trained[0]}`), which leave no ids for embeddings",
            where=checkpoint.path,
            hint="Convert it without embeddings, or take the checkpoint that it was made from.",
        )
    if not checkpoint.tokenizers:
        raise InputError("has no tokenizer to add embeddings to", where=checkpoint.path)
    return next(iter(checkpoint.tokenizers.values()))


def _encoders(checkpoint: Checkpoint) -> list[str]:
    return [name for name in TOKENIZERS.values() if name in checkpoint.parts]


def _asked(file: EmbeddingFile, token: str | None) -> Sequence[Inversion]:
    """The inversions of a file that are meant: all, or the one of several that a token names."""
    if token is None or len(file.inversions) == 1:
        return file.inversions
    named = [found for found in file.inversions if fitted(found.name) == token]
    if len(named) != 1:
        names = ", ".join(f"`{fitted(found.name)}`" for found in file.inversions)
        raise InputError(
            f"holds {len(file.inversions)} embeddings, and `{token}` is the name of none",
            where=file.path,
            hint=f"They are {names}. Leave the token away for all of them.",
        )
    return named


def _fitting(
    inversion: Inversion,
    embedding: Embedding,
    file: EmbeddingFile,
    checkpoint: Checkpoint,
    speller: Speller,
    told: Sequence[AppliedEmbedding],
) -> tuple[_Found, AppliedEmbedding]:
    """An inversion with its words, and what there is to say of it."""
    path, token = file.path, embedding.token
    if token is not None and any(token in other.words for other in told):
        raise InputError(f"`{token}` is the word of another embedding", where=path)
    vectors = _vectors(inversion, checkpoint, path)
    words = spell(token, inversion.name, inversion.count, speller, path)
    first, notes = next(iter(words)), []
    if token is None and first != inversion.name:
        notes.append(f"`{first}` because `{inversion.name}` can be no word of apps' vocabulary")
    for name in _encoders(checkpoint):
        if name not in vectors:
            notes.append(
                f"nothing of it is for {name}, which reads each word as the mean of its pieces"
            )
    unused = [name for name in inversion.vectors if name and name not in vectors]
    notes += [f"its vectors for {name} are not used, which the checkpoint lacks" for name in unused]
    applied = AppliedEmbedding(
        (), inversion.name, tuple(words), tuple(vectors), notes=tuple(notes), facts=file.facts
    )
    return _Found(vectors, words), applied


def _vectors(inversion: Inversion, checkpoint: Checkpoint, path: Path) -> dict[str, Tensor]:
    """The vectors that a checkpoint's text encoders take, by these; raises InputError for none."""
    widths = {
        name: checkpoint.parts[name].tensors[TABLE].shape[1] for name in _encoders(checkpoint)
    }
    found: dict[str, Tensor] = {}
    for side, tensor in inversion.vectors.items():
        width = tensor.shape[1]
        if not side:
            if width != widths["text_encoder_2"]:
                raise _other_family(inversion, width, widths, path)
            found["text_encoder_2"] = tensor
        elif side in widths:
            if width != widths[side]:
                raise InputError(
                    f"`{tensor.name}` is {width} wide, and this checkpoint's {side} {widths[side]}",
                    where=path,
                    hint="The embedding was made for a model of another family.",
                )
            found[side] = tensor
    if not found:
        sides = ", ".join(inversion.vectors)
        problem = f"has vectors for {sides} alone, which this checkpoint lacks"
        raise InputError(problem, where=path, hint="A refiner reads CLIP-G's, `clip_g`.")
    return {name: found[name] for name in widths if name in found}


def _other_family(
    inversion: Inversion, width: int, widths: Mapping[str, int], path: Path
) -> InputError:
    if width == widths.get("text_encoder"):
        return InputError(
            f"`{inversion.name}` is an embedding for {WIDTHS[768]}: its vectors, {width} wide, are "
            "for CLIP-L alone, and SDXL's second text encoder would know nothing of it",
            where=path,
            hint="Look for one that was made for SDXL, which holds `clip_l` and `clip_g`. Of two "
            "files by diffusers' script, keep `…_2` beside the first.",
        )
    known = f"an embedding for {WIDTHS[width]}" if width in WIDTHS else "no embedding for SDXL"
    return InputError(
        f"`{inversion.name}` is {known}: its vectors are {width} wide, and this checkpoint's text "
        f"encoders {' and '.join(map(str, widths.values()))}",
        where=path,
        hint="Look for one that was made for SDXL, which holds `clip_l` and `clip_g`.",
    )


@dataclass(frozen=True)
class _New:
    """What is added to vocabulary, merges and token embeddings.

    Attributes:
        start: the first new id; how many tokens there were.
        ids: of the new tokens: the words in their order, then what lies between.
        merges: in their order.
        spelled: of each new token: the rows of the pieces that it is made of.
    """

    found: Sequence[_Found]
    start: int
    ids: Mapping[str, int]
    merges: tuple[Merge, ...]
    spelled: Mapping[str, tuple[int, ...]]
    end_of_text: int

    @staticmethod
    def of(found: Sequence[_Found], tokenizer: Tokenizer) -> _New:
        known = tokenizer.ids
        merges = tuple(merge for one in found for chain in one.words.values() for merge in chain)
        words = [word + WORD_END for one in found for word in one.words]
        between = [a + b for a, b in merges if a + b not in words]
        ids = {token: number for number, token in enumerate([*words, *between], len(known))}
        spelled: dict[str, tuple[int, ...]] = {}
        for a, b in merges:
            spelled[a + b] = sum(
                (spelled[piece] if piece in spelled else (known[piece],) for piece in (a, b)), ()
            )
        return _New(found, len(known), ids, merges, spelled, known[END])

    def tokenizer(self, own: Tokenizer) -> Tokenizer:
        """A tokenizer with the words."""
        vocab = json.dumps({**own.ids, **self.ids}, ensure_ascii=False)
        return replace(
            own, vocab=vocab, merges=own.merges + "".join(f"{a} {b}\n" for a, b in self.merges)
        )

    def part(self, part: Part) -> Part:
        """A text encoder with the rows, which finds the end of a text by its own id."""
        table = part.tensors[TABLE]
        tensors = [table if table.shape[0] == self.start else rows(table, 0, self.start)]
        words = set()
        for one in self.found:
            own = [word + WORD_END for word in one.words]
            words |= {*own}
            tensors.append(one.vectors.get(part.name) or self._means(table, own))
        if between := [token for token in self.ids if token not in words]:
            tensors.append(self._means(table, between))
        whole = Stacked.of(*tensors)
        config: dict[str, Any] = {**part.config, "vocab_size": whole.shape[0]}
        if config.get("eos_token_id") == LEGACY_EOS:  # of the highest id, which is now a word's
            config["eos_token_id"] = self.end_of_text
        return replace(part, config=config, tensors={**part.tensors, TABLE: whole})

    def _means(self, table: Tensor, tokens: Sequence[str]) -> MeanRows:
        return MeanRows.of(table, tuple(self.spelled[token] for token in tokens))


def _documents(tokenizers: Mapping[str, Tokenizer], parts: Mapping[str, Part]) -> dict[str, str]:
    """The small files that are no longer as they were read, by their path in the layout."""
    found: dict[str, str] = {}
    for name, tokenizer in tokenizers.items():
        found |= {f"{name}/vocab.json": tokenizer.vocab, f"{name}/merges.txt": tokenizer.merges}
    for name in TOKENIZERS.values():
        if name in parts:
            found[f"{name}/config.json"] = json.dumps(dict(parts[name].config), indent=2) + "\n"
    return found


def _without_bundled(
    lora: AppliedLora, checkpoint: Checkpoint, embeddings: Sequence[Embedding]
) -> AppliedLora:
    """What is said of a LoRA whose own embeddings are now applied."""
    path = checkpoint.files.get(lora.file)
    if all(embedding.path != path for embedding in embeddings):
        return lora
    return replace(lora, ignored=tuple(t for t in lora.ignored if not t.startswith("embedding ")))
