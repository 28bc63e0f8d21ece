"""Whether a checkpoint has the ingredients that an artifact was made with, by its manifest.

One that lacks a LoRA, or has it at another strength, is another checkpoint: everything differs, and
nothing of what differs tells why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.layout import EMA_USED
from convert.files.disk import digest_file
from convert.run.manifest import read

Ingredient = tuple[Any, str]  # what tells it from others, and what people call it


def other_ingredients(path: Path, source: Checkpoint) -> str:
    """What an artifact was made with that a checkpoint lacks, and the reverse, in words.

    Args:
        path: of an artifact folder; of others nothing is known.

    Returns:
        Nothing, where they are the same.

    Raises:
        InputError: as `convert.run.manifest.read`.
    """
    manifest = read(path) if path.is_dir() else None
    if manifest is None:
        return ""
    made, given = [*_made_with(manifest["source"])], [*_given(source)]
    found = []
    if lacks := _beyond(made, given):
        found.append(f"the artifact was made with {lacks}, and the checkpoint given has not")
    if more := _beyond(given, made):
        found.append(f"the checkpoint given has {more}, with which the artifact was not made")
    if not found and [what for what, _ in made] != [what for what, _ in given]:
        found.append("the artifact was made with the same LoRAs in another order")
    return "; ".join(found)


def _beyond(some: list[Ingredient], others: list[Ingredient]) -> str:
    """Those that are not among the others, as often."""
    rest, found = [what for what, _ in others], []
    for what, text in some:
        if what in rest:
            rest.remove(what)
        else:
            found.append(text)
    return ", ".join(found)


def _made_with(source: Mapping[str, Any]) -> Iterator[Ingredient]:
    told = (source.get("origin") or {}).get("ignored", ())
    yield from _averaged(any(one["reason"] == EMA_USED for one in told))
    if vae := source.get("vae"):
        yield _vae(vae["name"], vae["files"])
    for lora in source.get("loras") or ():
        yield from _lora(lora["file"], lora["sha256"], lora["scale"], lora["text_scale"])
    for one in source.get("embeddings") or ():
        yield _embedding(one["words"], one["files"])


def _given(source: Checkpoint) -> Iterator[Ingredient]:
    def digests(*names: str) -> dict[str, str]:
        return {name: digest_file(source.files[name]) for name in names}

    yield from _averaged(source.origin is not None and EMA_USED in source.origin.ignored)
    if vae := source.other_vae:
        yield _vae(vae.name, digests(*vae.files))
    for lora in source.loras:
        digest = digests(lora.file)[lora.file]
        yield from _lora(lora.file, digest, lora.scale, lora.text_scale)
    for one in source.embeddings:
        yield _embedding(one.words, digests(*one.files))


def _averaged(used: bool) -> Iterator[Ingredient]:
    if used:
        yield "ema", "EMA weights"


def _vae(name: str, files: Mapping[str, str | None]) -> Ingredient:
    return ("vae", sorted(map(str, files.values()))), f"the VAE {name}"


def _lora(file: str, digest: str | None, scale: float, text_scale: float) -> Iterator[Ingredient]:
    if scale or text_scale:  # else it changes nothing
        strength = f"{scale}" if scale == text_scale else f"{scale} and {text_scale}"
        name = file.rpartition("/")[2]
        yield ("lora", digest, scale, text_scale), f"the LoRA {name} at strength {strength}"


def _embedding(words: Any, files: Mapping[str, str | None]) -> Ingredient:
    text = " ".join(words)
    return ("embedding", text, sorted(map(str, files.values()))), f"the embedding `{text}`"
