"""A package's weights layer by layer: how each is stored, and in how many bits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convert import units
from verify.artifact.graph import decoder_parts, stored_format

if TYPE_CHECKING:
    from verify.mil.program import Constant, Program


@dataclass(frozen=True)
class Layer:
    """One weight.

    Attributes:
        format: `6-bit palette`, `int8 linear`, or the dtype of one that is not compressed.
        bytes: of its values in the weight file: indices and tables, integers and scales; without
            the records and the padding between them.
        palettes: look-up tables; 0 where there are none.
        entries: of each of them.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    bytes: int
    palettes: int = 0
    entries: int = 0

    @property
    def elements(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, tables and scales among them, by weight."""
        return 8 * self.bytes / self.elements


def layers(program: Program) -> list[Layer]:
    """Every weight that the program keeps in its weight file, in the order of the program."""
    constants = dict(program.constants())
    decoders = [op for op in program.ops if op.type.startswith("constexpr_")]
    inner = {
        value
        for op in decoders
        for values in op.inputs.values()
        for value in values
        if isinstance(value, str)
    }
    found = []
    for op in program.ops:
        name, type_ = op.outputs[0] if op.outputs else ("", None)
        if type_ is None or name in inner:
            continue
        if op.type == "const":
            constant = constants.get(name)
            if constant is not None and constant.file is not None:
                found.append(Layer(name, type_.shape, type_.dtype, _nbytes(constant)))
        elif op.type.startswith("constexpr_"):
            parts = decoder_parts(op, constants)
            size = sum(_nbytes(c) for c in parts.values() if c.file is not None)
            palettes = entries = 0
            if "lut" in parts:
                shape = parts["lut"].type.shape
                entries = shape[0] if len(shape) == 1 else shape[-2]
                palettes = 1 if len(shape) == 1 else math.prod(shape[:-2])
            kind = stored_format(op, constants)
            found.append(Layer(name, type_.shape, kind, size, palettes, entries))
    return found


def layer_table(found: list[Layer]) -> list[str]:
    """The layers as rows for a terminal."""
    rows = [("weight", "shape", "stored as", "bits", "palettes", "size")]
    for layer in found:
        palettes = f"{layer.palettes} of {layer.entries}" if layer.palettes else ""
        shape = "×".join(map(str, layer.shape))
        bits = f"{layer.bits_per_weight:.2f}"
        rows.append((layer.name, shape, layer.format, bits, palettes, units.size(layer.bytes)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (False, False, False, True, True, True)
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _nbytes(constant: Constant) -> int:
    dtype = constant.type.dtype
    width = re.search(r"\d+$", dtype)
    bits = int(width[0]) if width else 8  # bool
    return -(-math.prod(constant.type.shape) * bits // 8)
