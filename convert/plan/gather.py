"""A source and its ingredients: fetched to this disk, opened, and made one checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from convert.checkpoint.checkpoint import Checkpoint
from convert.embedding.apply import Embedding
from convert.embedding.apply import apply as with_embeddings
from convert.errors import InputError
from convert.lora.apply import Lora
from convert.lora.apply import apply as with_loras
from convert.opening.door import open_checkpoint
from convert.opening.prediction import with_prediction
from convert.opening.vae import with_vae
from convert.process.progress import Progress
from convert.recipe.source import EmbeddingSource, FileSource, Ingredients, LoraSource, Source
from convert.source.download import CheckpointSource, Snapshot, fetch, local_source, parse_source
from convert.source.headers import Get, looking

NOTHING = Ingredients()


@dataclass(frozen=True)
class Gathered:
    """A checkpoint, and what it was made of on this disk."""

    snapshot: Snapshot
    checkpoint: Checkpoint


def gather(
    source: CheckpointSource,
    progress: Progress,
    ingredients: Ingredients = NOTHING,
    *,
    spare_base: bool = False,
    token: str | None = None,
) -> Gathered:
    """The checkpoint at a source, with its ingredients, downloaded if need be.

    Args:
        ingredients: what is put into it.
        spare_base: leave a base away where the source is a folder, which lacks nothing, rather than
            refuse it: the base of a recipe whose own source is another.
        token: for the server of a URL.

    Raises:
        InputError: as `download`, `open_checkpoint` and `apply`.
    """
    get = partial(fetch, progress=progress, token=token)
    snapshot = _fetched(source, ingredients, get, spare_base=spare_base)
    return Gathered(snapshot, _opened(snapshot, ingredients))


@contextmanager
def looked_at(
    source: CheckpointSource,
    progress: Progress,
    ingredients: Ingredients = NOTHING,
    *,
    spare_base: bool = False,
    token: str | None = None,
) -> Iterator[Gathered]:
    """The same for whoever reads no weights: of what is not on this disk, headers, for the block.

    Args:
        ingredients, spare_base, token: as `gather` takes them.

    Raises:
        InputError: as `gather`.
    """
    with looking(progress, token=token) as get:
        snapshot = _fetched(source, ingredients, get, spare_base=spare_base)
        yield Gathered(snapshot, _opened(snapshot, ingredients))


def open_source(
    source: CheckpointSource,
    progress: Progress,
    ingredients: Ingredients = NOTHING,
    *,
    spare_base: bool = False,
    token: str | None = None,
) -> Checkpoint:
    """The checkpoint of `gather`."""
    found = gather(source, progress, ingredients, spare_base=spare_base, token=token)
    return found.checkpoint


def source_of(given: Source | FileSource) -> CheckpointSource:
    """Where what a recipe names comes from; raises InputError for a path where nothing is."""
    if given.repo:
        return CheckpointSource("repo", given.repo, given.revision, given.file, given.sha256)
    if given.url:
        return replace(parse_source(given.url), sha256=given.sha256)
    found = local_source(str(given.path))  # never a Hub repo, whatever its form
    if found is None:
        places = next(text for kind, text in _PLACES.items() if isinstance(given, kind))
        hint = f"Write where yours is: {places}."
        raise InputError("no such folder or file", where=given.path, hint=hint)
    return replace(found, sha256=given.sha256)


_PLACES: Mapping[type, str] = {
    Source: "`path` in the recipe's [source], or --source instead of it",
    LoraSource: "in `loras` of the recipe's [source], or after --lora",
    EmbeddingSource: "in `embeddings` of the recipe's [source], or after --embedding",
}


def _ingredient(key: str, text: str) -> CheckpointSource:
    """Where an ingredient that is a text comes from; its errors name it."""
    try:
        return parse_source(text)
    except InputError as error:
        where = error.where or key
        raise InputError(error.problem, where=where, hint=error.hint) from None


def _fetched(
    source: CheckpointSource, ingredients: Ingredients, get: Get, *, spare_base: bool
) -> Snapshot:
    """All of it on this disk; a path where nothing is is said before anything is fetched."""
    if ingredients.vae is not None:
        source = replace(source, take="checkpoint without vae")
    wanted = dict(_wanted(ingredients))
    base = ingredients.base
    if base is not None and not spare_base:
        wanted["base"] = _ingredient("base", base)
    snapshot = get(source)
    if base is not None and spare_base and not snapshot.path.is_dir():
        wanted["base"] = _ingredient("base", base)
    return replace(snapshot, ingredients={key: get(one) for key, one in wanted.items()})


def _wanted(ingredients: Ingredients) -> Iterator[tuple[str, CheckpointSource]]:
    """Where each ingredient but the base comes from, by its key."""
    if ingredients.vae is not None:
        yield "vae", replace(_ingredient("vae", ingredients.vae), take="vae")
    for index, lora in enumerate(ingredients.loras):
        yield f"loras[{index}]", source_of(lora)
    for index, embedding in enumerate(ingredients.embeddings):
        yield f"embeddings[{index}]", source_of(embedding)


def _opened(snapshot: Snapshot, ingredients: Ingredients) -> Checkpoint:
    """The checkpoint of a snapshot, with its ingredients in their order."""
    base = None
    if (found := snapshot.ingredients.get("base")) is not None:
        base = open_checkpoint(found.path, name=found.name)
    vae = snapshot.ingredients.get("vae")
    without = () if vae is None else ("vae",)
    checkpoint = open_checkpoint(
        snapshot.path, name=snapshot.name, base=base, without=without, ema=ingredients.ema
    )
    if vae is not None:
        found_in = vae.path.name if vae.path.is_file() else None
        name = "/".join(filter(None, (vae.repo, found_in)))
        checkpoint = with_vae(
            checkpoint, vae.path, name=name or None, base=base, digests=snapshot.digests
        )
    if ingredients.prediction != "auto":
        checkpoint = with_prediction(checkpoint, ingredients.prediction)
    loras = [
        Lora(snapshot.ingredients[f"loras[{index}]"].path, lora.scale, lora.text_scale)
        for index, lora in enumerate(ingredients.loras)
    ]
    checkpoint = with_loras(checkpoint, loras)[0] if loras else checkpoint
    embeddings = [
        Embedding(snapshot.ingredients[f"embeddings[{index}]"].path, embedding.token)
        for index, embedding in enumerate(ingredients.embeddings)
    ]
    return with_embeddings(checkpoint, embeddings)
