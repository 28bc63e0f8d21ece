"""A cheap look at a full-size model: its own weight file under the same graph for small latents.

Weights are the same at every resolution, so a package for 256x256 is made around the shipped
`weight.bin` (linked, not copied) by the converter's own builder, and compared there. What this
shows is the weights and the network; what the shipped graph does at its own size is for one
timestep at the true resolution to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import coremltools as ct
import numpy as np

from convert.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.mlpackage import WEIGHTS, Description, assemble, serialise
from convert.models.networks import build_network
from convert.values import FORMATS, Format, Resolution
from convert.weight_file import layout
from verify.inspect_graph import infer_attention
from verify.interface import is_compressed, precision
from verify.mil import Program, load_program

PROBE = Resolution(256, 256)
TIMESTEPS = (999, 500, 37)  # both ends and the middle: a probe is to be quick
SCOPE = "the same weights at {}, in a graph made anew for it, instead of the packages' own size"


def probe_package(
    program: Program, component: str, source: Checkpoint, folder: Path, *, size: Resolution = PROBE
) -> Path:
    """A package with the weights of `program` and a graph for another size.

    Args:
        folder: where it goes; must be on the weights' disk to cost no room.

    Raises:
        InputError: the package's weights are not arranged as our converter does it.
        CannotExecute: its attention or its format is not known.
    """
    shipped = Path(program.path)
    weights = shipped / WEIGHTS
    if is_compressed(program) or not weights.is_file():
        raise InputError(
            "cannot be probed: only uncompressed .mlpackage models can",
            where=shipped,
            hint="Leave out --probe; --timesteps 999 makes a check at the true size short.",
        )
    attention = infer_attention(program) if component == "unet" else "original"
    target = _target(program)
    network = build_network(
        source,
        component,
        image_size=(size.height, size.width),
        attention=attention,
        dtype=np.float16 if precision(program) == "fp16" else np.float32,
        target=getattr(ct.target, target),
    )
    plan = layout(network.blobs.values())
    offsets = _offsets(program)
    if plan.size != weights.stat().st_size or offsets != plan.offsets:
        name = next((n for n in plan.offsets if offsets.get(n) != plan.offsets[n]), "their size")
        raise InputError(
            f"cannot be probed: its weights are not arranged as this version does it ({name})",
            where=shipped,
            hint="Leave out --probe; --timesteps 999 makes a check at the true size short.",
        )
    spec = COMPONENTS[component]
    about = Description("a probe", "", "", "", spec.inputs, spec.outputs)
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
        if name.startswith("text_encoder")
        else load_program(probe_package(program, name, source, folder, size=size))
        for name, program in programs.items()
    }


def _target(program: Program) -> str:
    found = Format(program.specification_version, program.opset)
    for name, known in FORMATS.items():
        if known == found:
            return name
    raise CannotExecute(f"no system's format: {found}", where=program.path)


def _offsets(program: Program) -> dict[str, int]:
    """Where the program's weights are in its file, by name."""
    return {
        name: constant.offset for name, constant in program.constants() if constant.file is not None
    }
