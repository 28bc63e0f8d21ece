"""Whether weights are stored as an artifact's bits promise; the rule is `weights.compress`'s.

What is stored is read from the decoders: which kind, how many bits, and how many tables or scales
along which axis. The rule is told here a second time, by shapes and bytes alone, so that a
converter that strays from it, or a tensor that was exchanged, does not go unseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.tensors import Tensor
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.run.manifest import CompressionRequest
from convert.weights.compress import BLOCK, PALETTES, SMALLEST
from verify.artifact.graph import decoder_parts
from verify.artifact.stored import LOSSLESS, compressed_names
from verify.mil import Constant, Op, Program
from verify.mil.blob import packed_size


@dataclass(frozen=True)
class Form:
    """How a weight is stored.

    Attributes:
        kind: of an element: `6-bit palette`, `int8`, or `float16` for one that is not compressed.
        parts: tables or scales along each axis; empty for one that is not compressed.
    """

    kind: str
    parts: tuple[int, ...] = ()

    def __str__(self) -> str:
        count = math.prod(self.parts)
        if not self.parts or (count == 1 and "palette" in self.kind):
            return self.kind
        if "palette" in self.kind:
            return f"{self.kind}s, {'×'.join(map(str, self.parts))} of them"
        return f"{self.kind} with {'×'.join(map(str, self.parts))} scales"


PLAIN = Form("float16")


def deviations(
    program: Program, component: str, source: Checkpoint, bits: str, asked: CompressionRequest
) -> Iterator[str]:
    """What is stored in another way than the rule has it, a sentence each.

    Args:
        bits: the artifact's.
        asked: what the recipe asks for the component beside them.
    """
    tensors = source.component_tensors(component)
    constants = dict(program.constants())
    decoders = compressed_names(program, source, component)
    forms = {name: _stored(op, constants) for name, op in decoders.items()}
    known = {op.outputs[0][0] for op in decoders.values()}
    for op in program.ops:
        if op.type.startswith("constexpr_") and op.type != LOSSLESS:
            name = op.outputs[0][0]
            if name not in known:
                yield f"{name} is compressed, which is no weight of the checkpoint's"
    if bits == "16":
        asked = CompressionRequest()
    wanted = asked.bits or (bits if COMPONENTS[component].is_compressed else "16")
    mixed = wanted.startswith("mixed-")
    for name, tensor in tensors.items():
        own = asked.tensors.get(name)
        width, size = wanted if own is None else own.bits, asked.group_size
        if own is not None and own.group_size is not None:
            size = own.group_size
        widths = PALETTES if mixed and own is None else (width,)
        rank = len(decoders[name].outputs[0][1].shape) if name in decoders else len(tensor.shape)
        allowed = {_form(name, tensor, w, size, rank) for w in widths}
        if mixed and own is None:
            allowed.add(PLAIN)
        found = forms.get(name, PLAIN)
        if found not in allowed:
            makes = " or ".join(sorted(map(str, allowed)))
            yield f"{name} {list(tensor.shape)} is stored as {found}; {width} makes it {makes}"
    if mixed:
        yield from _average(tensors, decoders, constants, wanted)


def _form(name: str, tensor: Tensor, bits: str, group_size: int | None, rank: int) -> Form:
    """How the rule has a tensor stored, in the rank that the package gives it."""
    shape = tensor.shape
    is_weight = len(shape) > 1 and not name.endswith("_embedding.weight")
    if bits == "16" or not is_weight or tensor.size < SMALLEST:
        return PLAIN
    ones = (1,) * (rank - 2)
    if bits in PALETTES:
        groups = shape[0] // group_size if group_size and shape[0] > group_size else 1
        form, width = Form(f"{bits}-bit palette", (groups, 1, *ones)), int(bits)
        extra = groups * 2 ** int(bits)
    else:
        blocks = shape[1] // BLOCK if bits == "int4" and shape[1] % BLOCK == 0 else None
        kind = "int8" if blocks is None else "int4"
        form, width = Form(kind, (shape[0], blocks or 1, *ones)), int(kind.removeprefix("int"))
        extra = math.prod(form.parts)
    compressed = _in_file(math.ceil(tensor.size * width / 8)) + _in_file(2 * extra)
    return form if compressed < _in_file(2 * tensor.size) else PLAIN


def _stored(op: Op, constants: dict[str, Constant]) -> Form:
    """How a decoder's weight is stored, from the shapes of what it decodes."""
    parts, rank = decoder_parts(op, constants), len(op.outputs[0][1].shape)
    if op.type == "constexpr_lut_to_dense" and "lut" in parts:
        shape = parts["lut"].type.shape
        if len(shape) == 1:  # iOS 16: one table
            return Form(_palette(shape[0]), (1,) * rank)
        if len(shape) > 2 and shape[-1] == 1:
            return Form(_palette(shape[-2]), shape[:-2])
    elif op.type == "constexpr_affine_dequantize" and {"quantized_data", "scale"} <= parts.keys():
        scale = parts["scale"].type.shape
        is_along_channels = len(scale) == 1 and "axis" in parts and parts["axis"].item() == 0
        if is_along_channels and _is_zero(parts.get("zero_point")):
            return Form(parts["quantized_data"].type.dtype, (*scale, *(1,) * (rank - 1)))
    elif (
        op.type == "constexpr_blockwise_shift_scale"
        and {"data", "scale"} <= parts.keys()
        and _is_zero(parts.get("offset"))
    ):
        return Form(parts["data"].type.dtype, parts["scale"].type.shape)
    return Form(f"a form of {op.type} that no bits make")


def _is_zero(offset: Constant | None) -> bool:
    try:
        return offset is None or not offset.array().any()
    except (CannotExecute, InputError):
        return True  # the check of the weights says so


def _palette(entries: int) -> str:
    bits = entries.bit_length() - 1
    return f"{bits}-bit palette" if entries == 1 << bits else f"palette of {entries}"


def _in_file(size: int) -> int:
    """Bytes in a weight file: a record of 64, and the data to the next multiple of 64."""
    return 64 + math.ceil(size / 64) * 64


def _average(
    tensors: Mapping[str, Tensor],
    decoders: Mapping[str, Op],
    constants: dict[str, Constant],
    claimed: str,
) -> Iterator[str]:
    """Whether all that is stored of the weights that can be compressed averages no more bits."""
    stored = weights = 0
    for name, tensor in tensors.items():
        if _form(name, tensor, "8", None, 2) == PLAIN:
            continue
        weights += tensor.size
        if name not in decoders:
            stored += _in_file(2 * tensor.size)
            continue
        for key, part in decoder_parts(decoders[name], constants).items():
            if part.file is not None and key != "zero_point":  # one for all of a size
                stored += _in_file(packed_size(part.type.dtype, math.prod(part.type.shape)))
    if weights and 8 * stored > float(claimed.removeprefix("mixed-")) * weights:
        yield f"what is stored averages {8 * stored / weights:.3f} bits; {claimed} promises no more"
