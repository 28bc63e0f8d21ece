"""What a package is, read from its files: interface, ops, attention, weights, metadata, digests.

Weights are never loaded; the hashes stream them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.disk import digest_file
from convert.files.json_files import FileMissing
from convert.run.manifest import read_values
from convert.values import Resolution
from verify.artifact.folder import SUFFIXES, models_in
from verify.artifact.graph import (
    WeightCounts,
    count_weights,
    image_size,
    infer_attention,
    infer_component,
)
from verify.artifact.layers import Layer, layers

if TYPE_CHECKING:
    from verify.mil.program import Feature, Program


@dataclass(frozen=True)
class FileFact:
    """Size in bytes and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """One `.mlpackage` or `.mlmodelc`, or one function of several in it."""

    file: str
    component: str | None  # of the table of components; None if its interface is none of theirs
    attention: str | None  # of a UNet: original, split_einsum, split_einsum_v2 or unknown
    image_size: Resolution | None
    inputs: list[Feature]
    outputs: list[Feature]
    specification_version: int
    opset: str
    ops: dict[str, int]  # by type, most frequent first; without constants
    constants: int
    weights: WeightCounts
    author: str
    license: str
    version: str
    short_description: str
    user_defined: dict[str, str]
    files: dict[str, FileFact]  # by path in the package
    layers: list[Layer] | None = None  # of its weights, where they were asked for
    function: str | None = None  # which one this is, of several
    default_function: str | None = None  # which of several Core ML takes if none is named

    @property
    def bytes(self) -> int:
        """Size of all files of the package."""
        return sum(fact.bytes for fact in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Fields by name, the image size as WIDTHxHEIGHT; `layers` only if they were asked for."""
        facts = asdict(self)
        for name in ("layers", "function", "default_function"):
            if facts[name] is None:
                del facts[name]
        if self.layers is not None:
            facts["layers"] = [
                {**asdict(layer), "bits_per_weight": round(layer.bits_per_weight, 3)}
                for layer in self.layers
            ]
        return {
            **facts,
            "image_size": str(self.image_size) if self.image_size else None,
            "bytes": self.bytes,
            "weights": {
                **asdict(self.weights),
                "bits_per_weight": round(self.weights.bits_per_weight, 3),
            },
        }


@dataclass(frozen=True)
class Inspection:
    """One package, or an artifact folder with its manifest; a model for each function."""

    path: Path
    models: list[ModelFacts]
    manifest: dict[str, Any] | None

    @property
    def files(self) -> dict[str, int]:
        """The bytes of each package or compiled model, by its name."""
        return {model.file: model.bytes for model in self.models}

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values: `{"schema": 1, "path", "bytes", "models", "manifest"}`."""
        return {
            "schema": 1,
            "path": str(self.path),
            "bytes": sum(self.files.values()),
            "models": [model.to_json() for model in self.models],
            "manifest": self.manifest,
        }

    def lines(self, width: int = 100) -> list[str]:
        """The facts as text for a terminal of `width` columns."""
        from verify.artifact.text import lines

        return lines(self, width)


def inspect(path: Path, *, by_layer: bool = False) -> Inspection:
    """The facts of a `.mlpackage` or `.mlmodelc`, or of every one of an artifact folder.

    Args:
        by_layer: with every weight: how it is stored, and in how many bits.

    Raises:
        InputError: nothing there, no packages in the folder, a manifest that is not JSON, weights
            that are not what the program refers to.
        CannotExecute: a package that cannot be read, or is no ML Program.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such package or folder", where=path)
    # Only a folder that is not itself a model can hold some; the rest is for load_program to name.
    if not path.is_dir() or path.suffix in SUFFIXES:
        return Inspection(path, inspect_functions(path, by_layer=by_layer), None)
    packages = models_in(path)
    if not packages:
        inner = sorted({p.parent.name for p in path.glob("*/*.mlpackage")})
        inner += sorted({p.parent.name for p in path.glob("*/*.mlmodelc")} - set(inner))
        raise InputError(
            "holds no .mlpackage or .mlmodelc",
            where=path,
            hint=f"Give one of its folders: {', '.join(inner)}."
            if inner
            else "Give an artifact's folder, as `run` and `convert` leave them, or a .mlpackage.",
        )
    models = [model for p in packages for model in inspect_functions(p, by_layer=by_layer)]
    return Inspection(path, models, _manifest(path))


def inspect_functions(path: Path, *, by_layer: bool = False) -> list[ModelFacts]:
    """The facts of each function of a package. Raises as `inspect` does."""
    from verify.mil.load import load_functions
    from verify.mil.program import require_weights

    functions = load_functions(path)
    programs = functions.all().values()
    for program in programs:
        require_weights(program)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    facts = {str(f.relative_to(root)): FileFact(f.stat().st_size, digest_file(f)) for f in files}
    models = [_model(program, facts, by_layer) for program in programs]
    if len(models) == 1:
        return models
    return [
        replace(model, function=name, default_function=functions.default)
        for name, model in zip(functions.names, models, strict=True)
    ]


def _model(program: Program, files: dict[str, FileFact], by_layer: bool) -> ModelFacts:
    from verify.mil.program import histogram

    ops = Counter(histogram(program))
    constants = ops.pop("const", 0)
    component = infer_component(program)
    return ModelFacts(
        file=program.path.name,
        component=component,
        attention=infer_attention(program)
        if component and COMPONENTS[component].has_attention
        else None,
        image_size=image_size(program, component),
        inputs=program.inputs,
        outputs=program.outputs,
        specification_version=program.specification_version,
        opset=program.opset,
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        constants=constants,
        weights=count_weights(program),
        author=program.author,
        license=program.license,
        version=program.version,
        short_description=program.short_description,
        user_defined=dict(sorted(program.user_defined.items())),
        files=files,
        layers=layers(program) if by_layer else None,
    )


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return read_values(folder)
    except FileMissing:
        return None
