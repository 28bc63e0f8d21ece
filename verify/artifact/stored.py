"""How a package stores each of the checkpoint's weights, as its decoders tell."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from convert.checkpoint.checkpoint import Checkpoint
from convert.weights.compress import PALETTES, Compression, Method
from verify.mil import Constant, Op, Program

LOSSLESS = "constexpr_cast"
# What coremltools appends to the name of a weight that it casts and compresses.
ADDED = re.compile(r"(_to_fp16)?(_palettized|_quantized|_sparsified)?(_\d+)?$")
# What one more step of Lloyd's algorithm may gain: coremltools' palettizer stops a little short of
# the optimum; a wrong entry costs far more.
PALETTE_SLACK = 1.05


@dataclass(frozen=True)
class Palettes:
    """The palettes of a weight: one for the whole tensor, or one for each group of channels."""

    bits: int
    groups: int  # of successive output channels


def compressed_names(program: Program, checkpoint: Checkpoint, component: str) -> dict[str, Op]:
    """The decoder of every weight that the package stores compressed, by the checkpoint's name."""
    named = {name.replace(".", "_"): name for name in checkpoint.component_tensors(component)}
    found = {}
    for op in program.ops:
        if not op.type.startswith("constexpr_") or op.type == LOSSLESS:
            continue
        output = op.outputs[0][0]
        name = named.get(output) or named.get(ADDED.sub("", output))
        if name is None:
            continue  # a constant of the program itself, such as the mask: part of the conversion
        found[name] = op
    return found


def infer_compression(program: Program, checkpoint: Checkpoint, component: str) -> Compression:
    """How the package stores each of the checkpoint's weights, as its decoders tell.

    One that our converter cannot make counts as not compressed.
    """
    tensors = checkpoint.component_tensors(component)
    return Compression.of(
        {
            name: _method(op, tensors[name].shape[0])
            for name, op in compressed_names(program, checkpoint, component).items()
        }
    )


def _method(op: Op, channels: int) -> Method | None:
    palettes = palettes_of(op)
    if palettes is not None:
        grouped = channels // palettes.groups if palettes.groups > 1 else None
        return Method(str(palettes.bits), grouped) if str(palettes.bits) in PALETTES else None
    if op.type == "constexpr_affine_dequantize":
        return Method("int8")
    if op.type == "constexpr_blockwise_shift_scale":
        data = next(iter(op.inputs.get("data", ())), None)
        return Method(data.type.dtype) if isinstance(data, Constant) else None
    return None


def palettes_of(op: Op) -> Palettes | None:
    """The palettes that a decoder looks weights up in; None if it does not, or not so plainly."""
    if op.type != "constexpr_lut_to_dense":
        return None
    lut = op.attributes.get("lut") or next(iter(op.inputs.get("lut", ())), None)  # iOS 16, iOS 18
    if not isinstance(lut, Constant):
        return None
    shape = lut.type.shape
    if not (len(shape) == 1 if "lut" in op.attributes else len(shape) > 2):
        return None
    entries = shape[0] if len(shape) == 1 else shape[-2]
    groups = 1 if len(shape) == 1 else shape[0]
    # Groups along another axis, and tables of vectors, are not judged.
    is_known = math.prod(shape) == groups * entries
    return Palettes(int(math.log2(entries)), groups) if is_known else None
