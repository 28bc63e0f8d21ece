"""What is verified: an artifact folder with its manifest, or one package by itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import InputError, nearest
from convert.values import ATTENTIONS, FORMATS, Resolution, parse_bits
from verify.interface import infer_component
from verify.mil import load_program

MANIFEST = "manifest.json"
CLAIMS = ("artifact", "attention", "bits", "resolution", "deployment", "vae_precision")


@dataclass(frozen=True)
class Artifact:
    """Packages by component, and what their manifest claims of them."""

    path: Path
    name: str
    packages: Mapping[str, Path]  # component → .mlpackage; those that are there
    expected: tuple[str, ...]  # the components that should be there
    is_folder: bool
    claims: Mapping[str, str] = field(default_factory=dict)  # the manifest's, by `CLAIMS`
    files: Mapping[str, str] = field(default_factory=dict)  # the manifest's component → file
    problems: tuple[str, ...] = ()  # with the manifest

    @property
    def missing(self) -> tuple[str, ...]:
        """The components that should be there and are not."""
        return tuple(name for name in self.expected if name not in self.packages)


def open_artifact(
    path: Path, source: Checkpoint, components: Collection[str] | None = None
) -> Artifact:
    """Find the packages of an artifact folder, or tell which component a lone package is.

    Args:
        components: those to look at; all that the checkpoint has if None.

    Raises:
        InputError: nothing there to verify, or a component that the checkpoint does not have.
        CannotExecute: a lone package that cannot be read.
    """
    if not path.exists():
        raise InputError("no such artifact", where=path)
    for name in components or ():
        if name not in source.components:
            near = nearest(name, source.components)
            raise InputError(
                f"{source.name} has no component `{name}`; it has {', '.join(source.components)}",
                hint=f"Did you mean `{near}`?" if near else None,
            )
    wanted = tuple(n for n in source.components if components is None or n in components)
    if path.suffix in (".mlpackage", ".mlmodelc", ".mlmodel"):
        component = infer_component(load_program(path), source)
        if component not in wanted:
            raise InputError(f"is the {component}, not {' or '.join(wanted)}", where=path)
        return Artifact(path, path.stem, {component: path}, (component,), is_folder=False)
    packages = {
        name: file
        for name in wanted
        if (file := path / f"{COMPONENTS[name].file}.mlpackage").exists()
    }
    if not path.is_dir() or (not packages and not (path / MANIFEST).exists()):
        raise InputError(
            "neither an .mlpackage nor an artifact folder",
            where=path,
            hint="An artifact folder holds Unet.mlpackage and its companions; "
            "`sdxl-coreml convert` makes one.",
        )
    claims, files, problems = _manifest(path / MANIFEST)
    name = claims.get("artifact", path.resolve().name)
    return Artifact(path, name, packages, wanted, True, claims, files, tuple(problems))


def _manifest(path: Path) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The claims, the files by component, and what is wrong with the manifest."""
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}, {}, [f"{MANIFEST} is missing"]
    except (OSError, ValueError) as error:
        return {}, {}, [f"{MANIFEST} cannot be read: {error}"]
    if not isinstance(values, dict):
        return {}, {}, [f"{MANIFEST} holds no JSON object"]
    problems, claims = [], {}
    if values.get("schema") != 1:
        problems.append(f"`schema` is {values.get('schema')!r}, this tool reads 1")
    allowed = {
        "attention": ATTENTIONS,
        "deployment": tuple(FORMATS),
        "vae_precision": ("float32", "float16"),
    }
    for key in CLAIMS:
        value = values.get(key)
        if not isinstance(value, str) or not value:
            problems.append(f"`{key}` is {value!r}, not a text")
        elif key in allowed and value not in allowed[key]:
            problems.append(f"`{key}` is {value!r}; known are {', '.join(allowed[key])}")
        elif (problem := _unparsable(key, value)) is not None:
            problems.append(problem)
        else:
            claims[key] = value
    files = values.get("components")
    if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
        problems.append("`components` is not an object of component and file")
        files = {}
    return claims, files, problems


def _unparsable(key: str, value: str) -> str | None:
    parse = {"resolution": Resolution.parse, "bits": parse_bits}.get(key)
    if parse is None:
        return None
    try:
        parse(value)
    except InputError as error:
        return f"`{key}`: {error.problem}"
    return None
