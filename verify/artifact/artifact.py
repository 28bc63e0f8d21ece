"""What is verified: an artifact folder with its manifest, or one package by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.files.documents import checked
from convert.files.json_files import FileMissing, shown
from convert.run.manifest import CompressionRequest, read_values
from convert.values import ATTENTIONS, FORMATS, Resolution, parse_bits
from verify.artifact.folder import HINT, MANIFEST, SUFFIXES, models_by_component
from verify.artifact.graph import infer_component
from verify.mil import Program, load_program

LONE = (*SUFFIXES, ".mlmodel")  # how a model by itself is called
CLAIMS = ("artifact", "attention", "bits", "resolution", "deployment", "vae_precision")


@dataclass(frozen=True)
class Artifact:
    """Packages by component, and what their manifest claims of them."""

    path: Path
    name: str
    packages: Mapping[str, Path]  # component → .mlpackage or .mlmodelc; those that are there
    expected: tuple[str, ...]  # the components that should be there
    is_folder: bool
    claims: Mapping[str, str] = field(default_factory=dict)  # by `CLAIMS`
    components: Mapping[str, str] = field(default_factory=dict)  # and their files
    files: Mapping[str, Any] = field(default_factory=dict)  # size and sha256 by path
    pipeline: Mapping[str, Any] = field(default_factory=dict)  # of `convert.checkpoint.pipeline`
    asked: Mapping[str, CompressionRequest] = field(default_factory=dict)  # by component
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
            raise InputError(
                f"{source.name} has no component `{name}`; it has {', '.join(source.components)}",
                near=(name, source.components),
            )
    wanted = tuple(n for n in source.components if components is None or n in components)
    if path.suffix in LONE:
        component = _component(load_program(path), source)
        if component not in wanted:
            raise InputError(f"is the {component}, not {' or '.join(wanted)}", where=path)
        return Artifact(path, path.stem, {component: path}, (component,), is_folder=False)
    found = models_by_component(path)
    packages = {name: found[name] for name in wanted if name in found}
    if not path.is_dir() or (not packages and not (path / MANIFEST).exists()):
        raise InputError(
            "neither an .mlpackage or .mlmodelc nor an artifact folder",
            where=path,
            hint=HINT,
        )
    values, problems = _manifest(path)
    claims = _claims(values, problems) if values else {}
    tables: dict[str, dict[str, Any]] = {}
    for key in ("components", "files", "pipeline") if values else ():
        tables[key] = values[key] if isinstance(values.get(key), dict) else {}
        if not tables[key]:
            problems.append(f"`{key}` is no object, or empty")
    asked = _asked(values.get("compression"), wanted, problems)
    return Artifact(
        path,
        claims.get("artifact", path.resolve().name),
        packages,
        wanted,
        is_folder=True,
        claims=claims,
        asked=asked,
        problems=tuple(problems),
        **tables,
    )


def artifact_name(path: Path) -> str:
    """What an artifact's folder, or one package, is called."""
    if path.suffix in LONE:
        return path.stem
    values, _ = _manifest(path)
    return _claims(values, []).get("artifact", path.resolve().name)


def _component(program: Program, source: Checkpoint) -> str:
    """Which component of the checkpoint a package is, from its interface and its graph."""
    component = infer_component(program)
    if component in source.components:
        return component
    inputs, outputs = (", ".join(f.name for f in fs) for fs in (program.inputs, program.outputs))
    what = f"is a {component}" if component else f"takes {inputs} and gives {outputs}"
    raise InputError(
        f"{what}, which no component of {source.name} does",
        where=program.path,
        hint=f"Its components are {', '.join(source.components)}.",
    )


def _manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest, and what is wrong with it as a file."""
    try:
        values = read_values(folder)
    except FileMissing:
        return {}, [f"{MANIFEST} is missing"]
    except InputError as error:
        return {}, [f"{MANIFEST} {error.problem}"]
    if values.get("schema") != 1:
        return {}, [f"`schema` is {shown(values.get('schema'))}, this tool reads 1"]
    return values, []


def _asked(
    values: Any, components: Collection[str], problems: list[str]
) -> dict[str, CompressionRequest]:
    """What was asked of each component's weights beside the artifact's bits."""
    found = {}
    for component in components:
        facts = values.get(component) if isinstance(values, dict) else None
        asked = facts.get("asked", {}) if isinstance(facts, dict) else {}
        try:
            found[component] = checked(CompressionRequest, asked, f"compression.{component}.asked")
        except InputError as error:
            problems.append(f"{error.where}: {error.problem}")
    return found


def _claims(values: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """The claims that can be understood; what is wrong with the others joins `problems`."""
    allowed = {
        "attention": ATTENTIONS,
        "deployment": tuple(FORMATS),
        "vae_precision": ("float32", "float16"),
    }
    claims = {}
    for key in CLAIMS:
        value = values.get(key)
        if not isinstance(value, str) or not value:
            problems.append(f"`{key}` is {shown(value)}, not a text")
        elif key in allowed and value not in allowed[key]:
            problems.append(f"`{key}` is {shown(value)}; known are {', '.join(allowed[key])}")
        elif (problem := _unparsable(key, value)) is not None:
            problems.append(problem)
        else:
            claims[key] = value
    return claims


def _unparsable(key: str, value: str) -> str | None:
    parse = {"resolution": Resolution.parse, "bits": parse_bits}.get(key)
    if parse is None:
        return None
    try:
        parse(value)
    except InputError as error:
        return f"`{key}`: {error.problem}"
    return None
