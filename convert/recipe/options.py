"""What `convert`'s options stand for: a recipe, made of values; its errors speak of the options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from pydantic import ValidationError

from convert.errors import InputError
from convert.files.disk import name_as_given
from convert.files.json_files import readable
from convert.recipe.errors import refused
from convert.recipe.fields import LONGEST_NAME, check_file_name
from convert.recipe.recipe import Recipe, make_recipe
from convert.recipe.source import FileSource, Ingredients
from convert.source.download import parse_source
from convert.source.select import is_single

F = TypeVar("F", bound=FileSource)

# What a person typed for each key of the recipe, the most particular first.
OPTIONS = {
    "name": "--name",
    "source.revision": "--revision",
    "source.base": "--base",
    "source.vae": "--vae",
    "source.loras": "--lora",
    "source.embeddings": "--embedding",
    "source.prediction": "--prediction",
    "source.ema": "--ema",
    "source": "SOURCE",
    "matrix.attention": "--attention",
    "matrix.resolution": "--resolution",
    "matrix.bits": "--bits",
    "compress.group_size": "--group-size",
    "compress.allocation": "--allocation",
    "compress": "--group-size, --allocation",
    "target.deployment": "--deployment-target",
    "target.vae_precision": "--vae-precision",
    "release": "--name",
}
NAMELESS = "model"  # where nothing of a name is left


def recipe_from_options(
    source: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    added: Added | None = None,
    attention: Sequence[str] | None = None,
    resolution: Sequence[str] | None = None,
    bits: Sequence[str] | None = None,
    group_size: int | None = None,
    allocation: Path | None = None,
    deployment_target: str = "macOS14",
    vae_precision: str = "float32",
) -> Recipe:
    """The recipe that `convert`'s options stand for.

    Args:
        added: what is put into the checkpoint.

    Raises:
        InputError: no such source, or one line for each option that is wrong.
    """
    found = parse_source(source, revision)
    origin: dict[str, Any] = {found.kind: readable(found.location)}
    if found.revision:
        origin["revision"] = found.revision
    if found.file:
        origin["file"] = found.file
    origin |= added.values() if added else {}
    compress: dict[str, Any] = {}
    if group_size is not None:
        compress["group_size"] = group_size
    if allocation is not None:
        compress["allocation"] = readable(str(allocation))
    values: dict[str, Any] = {
        "name": artifact_name(own_name(source, revision)) if name is None else readable(name),
        "source": origin,
        "matrix": {
            "attention": list(attention or ["original"]),
            "resolution": list(resolution or ["1024x1024"]),
            "bits": list(bits or ["16"]),
        },
        "compress": compress,
        "target": {"deployment": deployment_target, "vae_precision": vae_precision},
    }
    recipe = make_recipe(values, options=OPTIONS)
    # The paths themselves, whatever bytes they are of; a recipe is text.
    paths: dict[str, Any] = {}
    if found.kind == "path":
        location = str(Path.cwd() / found.location)
        paths["source"] = recipe.source.model_copy(update={"path": location})
    if allocation is not None:
        file = str(Path.cwd() / allocation)
        paths["compress"] = recipe.compress.model_copy(update={"allocation": file})
    return recipe.model_copy(update=paths)


@dataclass(frozen=True)
class Added:
    """What `--base`, `--lora` and their like say that is put into a checkpoint, as typed."""

    base: str | None = None
    vae: str | None = None
    loras: Sequence[str] = ()
    embeddings: Sequence[str] = ()
    prediction: str | None = None
    ema: bool = False

    def values(self) -> dict[str, Any]:
        """The values of a recipe's [source]; of URLs without what they hold of secrets."""
        found: dict[str, Any] = {}
        for key in ("base", "vae"):
            if (place := getattr(self, key)) is not None:
                found[key] = readable(_written(place))
        if self.loras:
            found["loras"] = [lora_values(text) for text in self.loras]
        if self.embeddings:
            found["embeddings"] = [embedding_values(text) for text in self.embeddings]
        if self.prediction is not None:
            found["prediction"] = self.prediction
        if self.ema:
            found["ema"] = True
        return found

    def ingredients(self) -> Ingredients:
        """The same, with the addresses and paths themselves.

        Raises:
            InputError: one line for each option that is wrong.
        """
        options = {key.removeprefix("source."): text for key, text in OPTIONS.items()}
        try:
            made = Ingredients.model_validate(self.values())
        except ValidationError as error:
            raise refused(error, Ingredients, None, options) from None
        places = {"base": self.base, "vae": self.vae}
        exact: dict[str, Any] = {key: place for key, place in places.items() if place is not None}
        if self.loras:
            exact["loras"] = _exact(made.loras, self.loras)
        if self.embeddings:
            exact["embeddings"] = _exact(made.embeddings, self.embeddings)
        return made.model_copy(update=exact)


def _written(place: str) -> str:
    """A source as a recipe writes it: of the Hub's pages the whole address, which has the file."""
    found = parse_source(place)
    return place if found.kind == "repo" else found.location


def lora_values(text: str) -> dict[str, Any]:
    """What `--lora FILE[=STRENGTH]` stands for; a URL or Hub repo may stand for the file.

    >>> lora_values("detail.safetensors=0.8")
    {'path': 'detail.safetensors', 'scale': 0.8}
    """
    place, strength = _place_and_setting(text)
    values: dict[str, Any] = place_values(place)
    if strength is None:
        return values
    try:
        return {**values, "scale": float(strength)}
    except ValueError:
        raise InputError(
            f"`--lora {readable(text)}`: `{readable(strength)}` is no strength",
            hint="A strength is a number: --lora detail.safetensors=0.8",
        ) from None


def embedding_values(text: str) -> dict[str, Any]:
    """What `--embedding FILE[=TOKEN]` stands for; a URL or Hub repo may stand for the file.

    >>> embedding_values("style.safetensors=mystyle")
    {'path': 'style.safetensors', 'token': 'mystyle'}
    """
    place, token = _place_and_setting(text)
    return {**place_values(place), **({} if token is None else {"token": readable(token)})}


def place_values(place: str) -> dict[str, Any]:
    """What a recipe says of a file that is not the checkpoint: path, url, or repo and file."""
    is_url = place.startswith(("http://", "https://"))
    if not is_url and (is_single(Path(place).name) or Path(place).exists()):
        return {"path": readable(place)}
    found = parse_source(place)
    values = {found.kind: readable(found.location)}
    more = {"revision": found.revision, "file": found.file}
    return values | {key: value for key, value in more.items() if value is not None}


def exactly(file: F, place: str) -> F:
    """What `place_values` has made of a place, with the path or address itself."""
    kinds = [kind for kind in ("path", "url") if getattr(file, kind) is not None]
    return file.model_copy(update=dict.fromkeys(kinds, place))


def _exact(files: Sequence[F], texts: Sequence[str]) -> tuple[F, ...]:
    """Files with the places that options have, each FILE[=SETTING]."""
    places = [_place_and_setting(text)[0] for text in texts]
    return tuple(exactly(file, place) for file, place in zip(files, places, strict=True))


def _place_and_setting(text: str) -> tuple[str, str | None]:
    """The two halves of FILE[=SETTING]; names and queries of URLs may hold the mark, too."""
    place, mark, setting = text.rpartition("=")
    is_url = text.startswith(("http://", "https://"))
    if not mark or Path(text).is_file() or (is_url and "?" in place):
        return text, None
    return place, setting


def own_name(source: str, revision: str | None = None) -> str:
    """What a source is called: its folder's or file's name, or its repo's without the owner."""
    found = parse_source(source, revision)
    if found.kind == "path":
        name = name_as_given(Path(found.location))
        return name.rpartition(".")[0] if is_single(name) and not Path(source).is_dir() else name
    name = unquote(found.file or found.location).rstrip("/").rpartition("/")[2]
    return name.rpartition(".")[0] if is_single(name) else name


def artifact_name(text: str) -> str:
    """A name that files can have on every system, made from a source's.

    >>> artifact_name('con:1 "best"')
    'con_1_best'
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if _is_usable(text):
        return text
    text = re.sub(r"[\ufffd\x00-\x1f\x7f-\x9f]", "_", text)
    text = re.sub(r"""[\s_]*[/\\<>:"|?*][\s/\\<>:"|?*_]*""", "_", text)
    text = re.sub(r"^[\s._~-]+", "", text)
    text = text.encode()[:LONGEST_NAME].decode("utf-8", "ignore")
    text = re.sub(r"[\s._]+$", "", text)
    return text or NAMELESS


def _is_usable(text: str) -> bool:
    try:
        check_file_name(text)
    except ValueError:  # pydantic's own, as the recipe's validators raise it
        return False
    return len(text) <= LONGEST_NAME and text[0] != "~" and "\ufffd" not in text
