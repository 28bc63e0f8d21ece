"""Where a program keeps each tensor of the checkpoint, and in which form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from convert.checkpoint.tensors import Tensor
from verify.artifact.graph import decoder_parts
from verify.artifact.stored import ADDED, LOSSLESS
from verify.mil import Block, Constant, Op, Program

StoredForm = Literal["plain", "palettes", "integers", "other"]

_FORMS: dict[str, tuple[StoredForm, frozenset[str]]] = {  # decoder → form, what it must decode from
    "constexpr_lut_to_dense": ("palettes", frozenset({"indices", "lut"})),
    "constexpr_affine_dequantize": ("integers", frozenset({"quantized_data", "scale"})),
    "constexpr_blockwise_shift_scale": ("integers", frozenset({"data", "scale"})),
    LOSSLESS: ("plain", frozenset({"source_val"})),
}
SAMPLE = 64  # elements by which values that have another name are looked for


@dataclass(frozen=True)
class StoredWeight:
    """One tensor of the checkpoint as a program keeps it.

    Attributes:
        tensor: the checkpoint's.
        place: the name that the program has for its value.
        form: how it is stored.
        parts: what it is stored in, by the decoder's parameter; `value` of one that has none.
        shape: in the program.
        uses: how many ops take it.
    """

    tensor: Tensor
    place: str
    form: StoredForm
    parts: Mapping[str, Constant]
    shape: tuple[int, ...]
    uses: int


@dataclass(frozen=True)
class FoundWeights:
    """What a program has of a checkpoint.

    Attributes:
        weights: by the checkpoint's names.
        missing: tensors that no constant stands for.
        doubled: tensors that several constants are called after.
        foreign: constants in the weight file that are called after no tensor and are of floats.
    """

    weights: Mapping[str, StoredWeight]
    missing: tuple[str, ...]
    doubled: tuple[str, ...]
    foreign: Mapping[str, Constant] = field(default_factory=dict)


def find_weights(program: Program, tensors: Mapping[str, Tensor]) -> FoundWeights:
    """Where each tensor is, by its name, as our converter and coremltools spell it."""
    spelled = {name.replace(".", "_"): name for name in tensors}
    constants = dict(program.constants())
    uses = _uses(program.main)
    found: dict[str, StoredWeight] = {}
    doubled, foreign = [], {}
    for place, op in _values(program):
        name = spelled.get(place) or spelled.get(ADDED.sub("", place))
        if name is None:
            constant = constants.get(place)
            if constant is not None and constant.file is not None and _is_float(constant):
                foreign[place] = constant
        elif name in found:
            doubled.append(name)
        else:
            form, parts = _form(op, constants)
            shape = op.outputs[0][1].shape
            found[name] = StoredWeight(tensors[name], place, form, parts, shape, uses[place])
    missing = tuple(name for name in tensors if name not in found)
    return FoundWeights(found, missing, tuple(doubled), foreign)


def match_values(found: FoundWeights, tensors: Mapping[str, Tensor]) -> dict[str, Constant]:
    """Constants of other names with the values of tensors that no name stands for.

    Apple's converter renames some. Of several with the same values, the first is taken.

    Returns:
        by the missing tensors' names; those whose values are nowhere are left out.
    """
    by_size: dict[int, list[Constant]] = {}
    for constant in found.foreign.values():
        by_size.setdefault(int(np.prod(constant.type.shape)), []).append(constant)
    matched: dict[str, Constant] = {}
    for name in found.missing:
        for constant in by_size.get(tensors[name].size, ()):
            stored = constant.array().reshape(-1)
            value = tensors[name].read(stored.dtype).reshape(-1)
            if np.array_equal(value[:SAMPLE], stored[:SAMPLE]) and np.array_equal(value, stored):
                matched[name] = constant
                break
    return matched


def _values(program: Program) -> Iterator[tuple[str, Op]]:
    """Constants and decoded ones that are values by themselves, not parts of another."""
    decoders = [op for op in program.ops if op.type.startswith("constexpr_")]
    inner = {name for op in decoders for name in _names(op)}
    for op in program.ops:
        if op.type == "const" or op.type.startswith("constexpr_"):
            place = op.outputs[0][0]
            if place not in inner:
                yield place, op


def _form(op: Op, constants: dict[str, Constant]) -> tuple[StoredForm, dict[str, Constant]]:
    if op.type == "const":
        return "plain", {"value": op.attributes["val"]}
    parts = decoder_parts(op, constants)
    form, needed = _FORMS.get(op.type, ("other", frozenset()))
    if not needed <= parts.keys():
        return "other", parts
    if form == "plain":
        return form, {"value": parts["source_val"]}
    return form, parts


def _uses(block: Block) -> Counter[str]:
    """How often each value is taken by an op that computes, or given back."""
    counted = Counter(block.outputs)
    for op in block.ops:
        counted.update(_names(op))
        for inner in op.blocks:
            counted.update(_uses(inner))
    return counted


def _names(op: Op) -> Iterable[str]:
    return (value for values in op.inputs.values() for value in values if isinstance(value, str))


def _is_float(constant: Constant) -> bool:
    return constant.type.dtype in ("fp16", "fp32")
