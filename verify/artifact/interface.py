"""What a package has of the interface that the table of components asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from convert.checkpoint.checkpoint import Checkpoint, Shape
from convert.components import COMPONENTS, INPUT_ALIASES, OUTPUT_ALIASES
from convert.values import Resolution
from verify.mil import Program

T = TypeVar("T")
QUERY_CHUNK = 512  # of split_einsum_v2; told again, so that a slip of convert's shows


def with_aliases(
    program: Program, component: str, inputs: Mapping[str, T], outputs: Mapping[str, T]
) -> tuple[dict[str, T], dict[str, T]]:
    """The same by the names that the program has: a bundle's models have second names for some.

    Inputs are renamed where the program does not have the usual name; outputs are there twice.
    """
    found_in, found_out = ({f.name for f in fs} for fs in (program.inputs, program.outputs))
    second = INPUT_ALIASES.get(component, {})
    renamed = {
        second[n] if n in second and second[n] in found_in and n not in found_in else n: value
        for n, value in inputs.items()
    }
    again = {
        alias: outputs[n]
        for n, alias in OUTPUT_ALIASES.get(component, {}).items()
        if n in outputs and alias in found_out
    }
    return renamed, {**outputs, **again}


def fits(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> bool:
    """Whether names and shapes agree; -1 in `expected` is any size."""
    return found.keys() == expected.keys() and all(
        len(found[n]) == len(expected[n])
        and all(e in (-1, f) for f, e in zip(found[n], expected[n], strict=True))
        for n in expected
    )


def infer_resolution(program: Program, component: str, source: Checkpoint) -> Resolution | None:
    """The image size that a package is made for; None for a text encoder."""
    if not COMPONENTS[component].has_resolution:
        return None
    name, pattern = next(
        (name, feature.shape)
        for name, feature in COMPONENTS[component].inputs.items()
        if {"h", "H"} & {*feature.shape}
    )
    shapes = {f.name: f.shape for f in program.inputs}
    alias = INPUT_ALIASES.get(component, {}).get(name, name)
    shape = shapes.get(name) or shapes.get(alias, ())
    if len(shape) != len(pattern) or min(shape) < 1:
        return None
    factor = source.vae.factor if "h" in pattern else 1
    return Resolution(shape[3] * factor, shape[2] * factor)


def has_long_attention(program: Program) -> bool:
    """Whether an attention has more than 512 queries, so that `split_einsum_v2` cuts them up.

    Without one, `split_einsum` and `split_einsum_v2` are the same program. Their weights are
    [B, T, 1, S]; of self-attention, T is the number of queries in all.
    """
    weights = [op.outputs[0][1].shape for op in program.ops if op.type == "softmax"]
    return any(len(s) == 4 and s[2] == 1 and s[1] > QUERY_CHUNK for s in weights)


def precision(program: Program) -> str:
    """fp16 if any op computes in it, else fp32."""
    computed = {
        type_.dtype
        for op in program.ops
        if op.type != "const" and not op.type.startswith("constexpr_")
        for _, type_ in op.outputs
    }
    return "fp16" if "fp16" in computed else "fp32"


def is_compressed(program: Program) -> bool:
    """Whether any weight is stored in fewer bits than it is computed in."""
    decoders = {op.type for op in program.ops if op.type.startswith("constexpr_")}
    return bool(decoders - {"constexpr_cast"})
