"""A cheap look at a full-size model: its own weight file under the same graph for small latents.

Weights are the same at every resolution, so a package for 256x256 is made around the shipped
`weight.bin` (linked, not copied) by the converter's own builder, and compared there. What this
shows is the weights and the network; what the shipped graph does at its own size is for one
timestep at the true resolution to show.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.package.mlpackage import WEIGHTS, Description, assemble, serialise
from convert.values import FORMATS, DeploymentTarget, Format, Resolution, target_of
from convert.weights.weight_file import layout
from verify.artifact.ours import our_network
from verify.artifact.stored import infer_compression
from verify.mil import Constant, Program, load_program

PROBE = Resolution(256, 256)
TIMESTEPS = (999, 500, 37)  # both ends and the middle: a probe is to be quick
SHORT_CHECK = "Leave out --probe; `verify --timestep 999` is a short check at the true size."
WEIGHTS_BESIDE = Path("weights") / WEIGHTS.name  # a compiled model's program
SCOPE = "the same weights at {}, in a graph made anew for it, instead of the packages' own size"


def probe_package(
    program: Program,
    component: str,
    source: Checkpoint,
    folder: Path,
    *,
    size: Resolution = PROBE,
    claims: Mapping[str, str] | None = None,
) -> Path:
    """A package with the weights of `program` and a graph for another size.

    Args:
        folder: where it goes; must be on the weights' disk to cost no room.
        claims: what a manifest says of the program, as `our_network` takes it.

    Raises:
        InputError: the program's weights are not arranged as our converter does it.
        CannotExecute: its attention or its format is not known.
    """
    shipped, weights = Path(program.path), weight_file(program)
    require_probeable({component: program})
    target = target_for(program)
    compression = infer_compression(program, source, component)
    network = our_network(program, source, component, size, target, compression, claims=claims)
    plan = layout(network.blobs.values())
    offsets = weight_places(program)
    elsewhere = [
        blob.name
        for blob in plan.blobs
        if blob.tensor is not None and offsets.get(blob.name) != plan.offsets[blob.name]
    ]
    if elsewhere or plan.size != weights.stat().st_size:
        name = next(iter(elsewhere), "their size")
        raise InputError(
            f"cannot be probed: its weights are not arranged as this version does it ({name})",
            where=shipped,
            hint=SHORT_CHECK,
        )
    spec = COMPONENTS[component]
    about = Description("a probe", "", "", "", *spec.texts)
    package = folder / f"{spec.file}.mlpackage"
    assemble(package, serialise(network, plan, about, format=FORMATS[target]), weights)
    return package


def probe_programs(
    programs: Mapping[str, Program],
    source: Checkpoint,
    folder: Path,
    *,
    size: Resolution = PROBE,
) -> dict[str, Program]:
    """The programs with those that have a size replaced by their probes."""
    return {
        name: program
        if not COMPONENTS[name].has_resolution
        else load_program(probe_package(program, name, source, folder, size=size))
        for name, program in programs.items()
    }


def require_probeable(programs: Mapping[str, Program]) -> None:
    """Raise InputError for a model whose size matters and whose weights are not where they go."""
    for name, program in programs.items():
        if COMPONENTS[name].has_resolution and not weight_file(program).is_file():
            problem = f"cannot be probed: it has no {weight_file(program).name} where it goes"
            raise InputError(problem, where=program.path, hint=SHORT_CHECK)


def weight_file(program: Program) -> Path:
    """Where the weights of a program go, by the form that it comes in."""
    path = Path(program.path)
    if path.suffix == ".mlpackage":
        return path / WEIGHTS
    return (path if path.suffix == ".mlmodelc" else path.parent) / WEIGHTS_BESIDE


@contextmanager
def probe_folder(path: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `path`, where that can be written, for hard links."""
    parent = path.resolve().parent
    where = parent if os.access(parent, os.W_OK) else None
    with TemporaryDirectory(prefix=".probe-", dir=where) as folder:
        yield Path(folder)


def target_for(program: Program) -> DeploymentTarget:
    """The first system that reads the program's format; raises CannotExecute if there is none."""
    version = program.specification_version
    if (target := target_of(program.opset, version)) is not None:
        return target
    found = Format(version, program.opset)
    raise CannotExecute(f"no system's format: {found}", where=program.path)


def weight_places(program: Program) -> dict[str, int]:
    """Where the program's weights are in its file, by the names that our converter gives them."""
    found = dict(program.constants())
    for op in program.ops:
        if op.type.startswith("constexpr_"):
            given = {name: values[0] for name, values in op.inputs.items()} | op.attributes
            for parameter, value in given.items():
                if isinstance(value, Constant):
                    part = parameter.removeprefix("quantized_")
                    found[f"{op.outputs[0][0]}_{part}"] = value
    return {name: value.offset for name, value in found.items() if value.file is not None}
