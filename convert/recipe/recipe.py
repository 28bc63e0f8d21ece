"""Recipes: what to convert, into which artifacts, how to check and how to release them.

A recipe is strict TOML. Whatever is unknown, misspelt or impossible is an error that names the
file and the key; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from convert.errors import InputError
from convert.files.git_lfs import refuse_pointer
from convert.recipe.errors import refusal, refused, written
from convert.recipe.fields import LONGEST_NAME, check_file_name
from convert.recipe.section import Section
from convert.recipe.sections import Compress, Matrix, Release, Target, Verify
from convert.recipe.source import ORIGINS, FileSource, Source
from convert.values import Attention, Bits, DeploymentTarget, Resolution, targets_for

F = TypeVar("F", bound=FileSource)

_LARGEST_RECIPE = 1 << 20  # bytes; a checkpoint given by mistake is not read into memory


@dataclass(frozen=True)
class ArtifactSpec:
    """One folder that a run leaves: the models of one attention, bit width and resolution."""

    name: str
    attention: Attention
    bits: Bits
    resolution: Resolution


class Recipe(Section):
    """Everything a run needs to know; `parse_recipe` and `load_recipe` make it from TOML."""

    name: Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(check_file_name)] = Field(
        description="What the artifacts' names start with.", examples=["animagine-xl-3.1"]
    )
    source: Source = Field(description="Where the checkpoint comes from.")
    matrix: Matrix = Field(default=Matrix(), description="The artifacts.")
    compress: Compress = Field(default=Compress(), description="How weights are compressed.")
    target: Target = Field(default=Target(), description="Where the models run.")
    verify: Verify = Field(default=Verify(), description="The images made to check the artifacts.")
    release: Release = Field(
        default=Release(), description="How the artifacts are named and published."
    )

    _text: str = PrivateAttr("")
    _digest: str = PrivateAttr("")

    @property
    def text(self) -> str:
        """The TOML this recipe was parsed from, exactly as given; or that says the same."""
        return self._text

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the recipe's values, defaults included and paths as written.

        Comments, white space and the order of keys do not matter; the order of a list does.
        """
        return self._digest

    def artifacts(self) -> list[ArtifactSpec]:
        """Attention × bits × resolution, in the recipe's order, with names from the template."""
        return _artifacts(self.name, self.matrix, self.release.template)

    @field_validator("target")
    @classmethod
    def _holds_the_bits(cls, target: Target, info: ValidationInfo) -> Target:
        asked = _asked(info.data.get("matrix"), info.data.get("compress"))
        for at, what, able in asked:
            if target.deployment not in able:
                # iOS17 is answered with iOS18, macOS14 with macOS15.
                system = re.match("[a-zA-Z]+", target.deployment)
                meant = next(name for name in able if system and name.startswith(system[0]))
                needs = (
                    f"{what} needs a deployment target of {' or '.join(able[:2])} or newer, not "
                    f"{target.deployment}"
                )
                raise refusal(
                    needs,
                    f'write deployment = "{meant}" in [target]',
                    at=at,
                    option=f"{needs}; add --deployment-target {meant}",
                )
        return target

    @field_validator("compress")
    @classmethod
    def _compresses_something(cls, compress: Compress, info: ValidationInfo) -> Compress:
        matrix = info.data.get("matrix")
        if compress != Compress() and matrix is not None and set(matrix.bits) == {"16"}:
            raise refusal(
                "no artifact is compressed: matrix.bits has only 16",
                'write bits = ["8"] in [matrix], for example, and 16 for what is to stay',
                option="no artifact is compressed; add --bits 8, for example",
            )
        return compress

    @field_validator("release")
    @classmethod
    def _names_each_artifact(cls, release: Release, info: ValidationInfo) -> Release:
        name, matrix = info.data.get("name"), info.data.get("matrix")
        if name is None or matrix is None:
            return release  # they have errors of their own
        artifacts = _artifacts(name, matrix, release.template)
        first: dict[str, ArtifactSpec] = {}
        for artifact in artifacts:
            try:
                check_file_name(artifact.name)
            except ValueError as error:
                raise refusal(f"makes unusable names: {error}", at=".template") from error
            # macOS's file systems do not tell upper case from lower case.
            twin = first.setdefault(artifact.name.casefold(), artifact)
            if twin is not artifact:
                lacking = [f"{{{field}}}" for field in _differing(twin, artifact)]
                raise refusal(
                    f"{written(release.template)} names several artifacts {written(twin.name)}",
                    f"add {' and '.join(lacking)}",
                    at=".template",
                )
        return release

    def model_post_init(self, context: Any) -> None:
        """Take the digest of the values as they were written."""
        values = self.model_dump(mode="json", exclude_none=True)
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        self._digest = hashlib.sha256(canonical.encode()).hexdigest()


def _asked(
    matrix: Matrix | None, compress: Compress | None
) -> Iterator[tuple[str, str, tuple[DeploymentTarget, ...]]]:
    """What the format must hold: the key that asks, what it asks for, the targets that can."""
    for index, bits in enumerate(matrix.bits if matrix else ()):
        yield f"matrix.bits[{index}]", f"`{bits}`", targets_for(bits)
    if compress is None:
        return
    grouped = targets_for(Bits("8"), grouped=True)
    if compress.group_size is not None:
        yield "compress.group_size", "a palette for each group of channels", grouped
    for component, bits in compress.components.model_dump(exclude_none=True).items():
        yield f"compress.components.{component}", f"`{bits}`", targets_for(bits)
    for index, tensor in enumerate(compress.tensors):
        at = f"compress.tensors[{index}]"
        yield f"{at}.bits", f"`{tensor.bits}`", targets_for(tensor.bits)
        if tensor.group_size is not None:
            yield f"{at}.group_size", "a palette for each group of channels", grouped


def _artifacts(name: str, matrix: Matrix, template: str) -> list[ArtifactSpec]:
    return [
        ArtifactSpec(
            template.format(
                name=name,
                attention=attention.replace("_", "-"),  # so that _ only separates fields
                bits=bits,
                width=resolution.width,
                height=resolution.height,
            ),
            attention,
            bits,
            resolution,
        )
        for attention, bits, resolution in product(matrix.attention, matrix.bits, matrix.resolution)
    ]


def _differing(one: ArtifactSpec, other: ArtifactSpec) -> list[str]:
    pairs = {
        "attention": (one.attention, other.attention),
        "bits": (one.bits, other.bits),
        "width": (one.resolution.width, other.resolution.width),
        "height": (one.resolution.height, other.resolution.height),
    }
    return [field for field, (a, b) in pairs.items() if a != b]


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; relative paths in [source] start at the file's folder.

    Raises:
        InputError: the file cannot be read, or `parse_recipe` refuses it.
    """
    where = str(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError("is a folder, not a recipe", where=where, hint=_inside(path))
        if size > _LARGEST_RECIPE:
            raise InputError(
                f"is {size / 1e6:,.0f} MB, not a recipe",
                where=where,
                hint="A recipe is a TOML file; `sdxl-coreml convert` takes a checkpoint.",
            )
        with path.open("rb") as file:  # a pipe or device has no size
            content = file.read(_LARGEST_RECIPE + 1)
        if len(content) > _LARGEST_RECIPE:
            raise InputError(f"has no end within {_LARGEST_RECIPE / 1e6:,.0f} MB", where=where)
        refuse_pointer(path, content)
        text = content.decode()
    except FileNotFoundError as error:
        raise InputError(
            "there is no such recipe",
            where=where,
            near=(path.name, _beside(path)),
            suggest=lambda name: f"did you mean `{path.with_name(name)}`?",
            hint="`sdxl-coreml recipes` lists the built-in ones.",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"is not UTF-8 text (byte {error.start})",
            where=where,
            hint="A recipe is a TOML file, saved as UTF-8.",
        ) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=where) from error
    return parse_recipe(text, where=where, folder=path.parent)


def parse_recipe(text: str, *, where: str, folder: Path | None = None) -> Recipe:
    """The recipe that `text` spells in TOML.

    Args:
        text: TOML.
        where: what errors call the recipe, such as its file.
        folder: where relative paths start; without it they stay as written.

    Raises:
        InputError: not TOML (with line and column), or one line for each thing that is wrong.
    """
    try:
        # Windows editors put a byte-order mark in front, which TOML does not know.
        values = tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid TOML: {_located(error, text)}", where=where) from error
    recipe = make_recipe(values, where=where)
    if folder is not None:
        found: dict[str, Any] = {"source": _at(folder, recipe.source)}
        if recipe.compress.allocation is not None:
            file = _found(folder, recipe.compress.allocation)
            found["compress"] = recipe.compress.model_copy(update={"allocation": file})
        recipe = recipe.model_copy(update=found)
    recipe._text = text
    return recipe


def make_recipe(
    values: Mapping[str, Any],
    *,
    where: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe of these values, with paths as written; its text is their TOML.

    Args:
        where: what errors call the recipe.
        options: what a person typed for the recipe's keys, where errors shall speak of that.

    Raises:
        InputError: one line for each thing that is wrong.
    """
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise refused(error, Recipe, where, options) from error
    recipe._text = tomli_w.dumps(values)
    return recipe


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema (draft 2020-12), for editors that complete and check TOML."""
    schema = _polished(Recipe.model_json_schema(mode="validation"))
    for section in schema["properties"].values():
        section.pop("default", None)  # the keys have theirs
    schema["$defs"]["Compress"]["properties"]["components"].pop("default")
    for values in schema["$defs"]["Matrix"]["properties"].values():
        values["uniqueItems"] = True
    source = schema["$defs"]["Source"]
    source["oneOf"] = [{"required": [key]} for key in ORIGINS]
    source["dependentRequired"] = {"revision": ["repo"], "file": ["repo"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "sdxl-coreml recipe",
        "description": "What to convert, into which artifacts, how to check and release them.",
    }


def _polished(node: Any, *, is_map: bool = False) -> Any:
    """`node` without pydantic's generated titles and without null, which TOML does not have."""
    if isinstance(node, list):
        return [_polished(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: _polished(value, is_map=key in {"properties", "$defs"})
        for key, value in node.items()
        if is_map or not (key == "title" or (key == "default" and value is None))
    }
    if kept.get("type") == "array" and "minLength" in kept:
        kept["minItems"] = kept.pop("minLength")
    choices = kept.get("anyOf", [])
    if not is_map and {"type": "null"} in choices:
        (choice,) = [choice for choice in choices if choice != {"type": "null"}]
        del kept["anyOf"]
        kept = {**choice, **kept}
    return kept


def _at(folder: Path, source: Source) -> Source:
    found = {"path": None if source.path is None else _found(folder, source.path)}
    for key in ("base", "vae"):
        if (given := getattr(source, key)) is not None:  # a Hub repo is written like a folder
            place = _found(folder, given)
            found[key] = place if Path(place).exists() else given
    loras = tuple(_file_at(folder, lora) for lora in source.loras)
    embeddings = tuple(_file_at(folder, embedding) for embedding in source.embeddings)
    return source.model_copy(update={**found, "loras": loras, "embeddings": embeddings})


def _file_at(folder: Path, file: F) -> F:
    return file.model_copy(update={"path": _found(folder, file.path)}) if file.path else file


def _found(folder: Path, path: str) -> str:
    return str(folder / (Path(path).expanduser() if path.startswith("~/") else path))


def _located(error: Exception, text: str) -> str:
    if isinstance(error, RecursionError):
        return "values are nested too deeply"
    lines = text.split("\n")
    end = f"(at line {len(lines)}, column {len(lines[-1]) + 1})"
    return str(error).replace("(at end of document)", end)


def _beside(path: Path) -> list[str]:
    try:
        return [file.name for file in path.parent.glob("*.toml")]
    except OSError:
        return []


def _inside(path: Path) -> str | None:
    recipes = sorted(path.glob("*.toml"))
    return f"did you mean `{recipes[0]}`?" if recipes else None
