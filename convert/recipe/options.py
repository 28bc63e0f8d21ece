"""What `convert`'s options stand for: a recipe, made of values; its errors speak of the options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from convert.errors import InputError
from convert.files.disk import name_as_given
from convert.files.json_files import readable
from convert.recipe.fields import LONGEST_NAME, check_file_name
from convert.recipe.recipe import Recipe, make_recipe
from convert.source.download import parse_source
from convert.source.select import is_single

# What a person typed for each key of the recipe, the most particular first.
OPTIONS = {
    "name": "--name",
    "source.revision": "--revision",
    "source.loras": "--lora",
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
    base: str | None = None,
    loras: Sequence[str] = (),
    attention: Sequence[str] | None = None,
    resolution: Sequence[str] | None = None,
    bits: Sequence[str] | None = None,
    group_size: int | None = None,
    allocation: Path | None = None,
    deployment_target: str = "macOS14",
    vae_precision: str = "float32",
) -> Recipe:
    """The recipe that `convert`'s options stand for.

    Raises:
        InputError: no such source, or one line for each option that is wrong.
    """
    found = parse_source(source, revision)
    origin: dict[str, Any] = {found.kind: readable(found.location)}
    if found.revision:
        origin["revision"] = found.revision
    if found.file:
        origin["file"] = found.file
    if base is not None:
        origin["base"] = readable(parse_source(base).location)
    if loras:
        origin["loras"] = [lora_values(text) for text in loras]
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


def lora_values(text: str) -> dict[str, Any]:
    """What `--lora FILE[=STRENGTH]` stands for; raises InputError for another strength.

    >>> lora_values("detail.safetensors=0.8")
    {'path': 'detail.safetensors', 'scale': 0.8}
    """
    file, mark, strength = text.rpartition("=")
    if not mark or Path(text).is_file():  # a file's name may hold the mark
        return {"path": readable(text)}
    try:
        return {"path": readable(file), "scale": float(strength)}
    except ValueError:
        raise InputError(
            f"`--lora {readable(text)}`: `{readable(strength)}` is no strength",
            hint="A strength is a number: --lora detail.safetensors=0.8",
        ) from None


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
