"""What a program's graph says: its component, attention implementation, and stored weights."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convert.components import COMPONENTS, INPUT_ALIASES, OUTPUT_ALIASES
from convert.errors import InputError
from convert.values import Resolution

if TYPE_CHECKING:
    from verify.mil.program import Constant, Op, Program

EINSUM = "nchw,nwhu->nchu"  # keys or values [N, C, H, W] with queries or weights [N, W, H, U]
PIXELS_PER_LATENT = 8  # SDXL's; the apps compute a UNet's image size with it
# What may stand between the product of queries and keys and the softmax: scale and mask.
BETWEEN = ("mul", "add", "cast", "real_div", "sub", "select", "reshape")


@dataclass(frozen=True)
class WeightCounts:
    """The constants that weight files hold.

    `elements` counts decoded values, `bytes` what is on disk, so `bits_per_weight` includes
    palettes, scales and padding. `formats` counts elements by how they are stored.
    """

    elements: int
    bytes: int
    formats: dict[str, int]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, tables and scales among them, by weight; 0 without weights."""
        return 8 * self.bytes / self.elements if self.elements else 0.0


def infer_component(program: Program) -> str | None:
    """The component whose inputs and outputs the program has, by name; None if there is none.

    The text encoders share theirs: text_encoder_2 is the one that projects its pooled output.
    """
    found = [c for c in COMPONENTS if _has_names_of(program, c)]
    if len(found) < 2:
        return found[0] if found else None
    producers = _producers(program)
    op = producers.get("pooled_outputs")
    while op is not None and op.type in ("cast", "identity", "reshape"):
        op = producers.get(_argument(op, "x"))
    projected = op is not None and op.type in ("linear", "matmul")
    return next(name for name in found if COMPONENTS[name].projected == projected)


def _has_names_of(program: Program, component: str) -> bool:
    """Whether these are the component's names, or those that it has in a bundle."""
    usual = {alias: name for name, alias in INPUT_ALIASES.get(component, {}).items()}
    inputs = {usual.get(f.name, f.name) for f in program.inputs}
    again = set(OUTPUT_ALIASES.get(component, {}).values())
    outputs = {f.name for f in program.outputs} - again
    spec = COMPONENTS[component]
    return (inputs, outputs) == (set(spec.inputs), set(spec.outputs))


def infer_attention(program: Program) -> str:
    """The attention implementation of a UNet, from its graph alone.

    Every softmax must take, through scale and mask alone, a product of queries and keys:

    - all of them a `matmul`, and no `einsum` anywhere: `original`;
    - all of them an `einsum` of Apple's equation, two for each softmax (the second with the
      values): `split_einsum`, or `split_einsum_v2` if the queries of one are a shorter slice of
      the sequence. With at most 512 queries the two are the same graph, called `split_einsum`.

    Anything else, fused attention included, is `unknown`.
    """
    producers = _producers(program)
    softmaxes = [op for op in program.ops if op.type == "softmax"]
    einsums = [op for op in program.ops if op.type == "einsum"]
    products = set()
    queries = []
    for softmax in softmaxes:
        op = producers.get(_argument(softmax, "x"))
        while op is not None and op.type in BETWEEN:
            op = producers.get(_argument(op, "x"))
        products.add(op.type if op else None)
        if op is not None and op.type == "einsum":
            queries.append(producers.get(_argument(op, "values", 1)))
    if products == {"matmul"} and not einsums:
        return "original"
    constants = dict(program.constants())
    if products != {"einsum"} or len(einsums) != 2 * len(softmaxes):
        return "unknown"
    if any(_renamed(_value(op, "equation", constants)) != _renamed(EINSUM) for op in einsums):
        return "unknown"
    chunked = any(op is not None and _shortens_sequence(op, producers) for op in queries)
    return "split_einsum_v2" if chunked else "split_einsum"


def _renamed(equation: object) -> str:
    """The equation with letters in order of appearance: coremltools keeps those of the source."""
    letters: dict[str, str] = {}
    return "".join(
        letters.setdefault(c, chr(ord("a") + len(letters))) if c.isalpha() else c
        for c in str(equation).replace(" ", "")
    )


def _shortens_sequence(op: Op, producers: dict[str, Op]) -> bool:
    """Whether `op` is a slice with fewer queries (the last axis) than what it slices."""
    source = producers.get(_argument(op, "x"))
    if op.type != "slice_by_index" or source is None:
        return False
    sizes = {name: type_.shape for name, type_ in source.outputs}
    return op.outputs[0][1].shape[-1] < sizes[_argument(op, "x")][-1]


def _producers(program: Program) -> dict[str, Op]:
    return {name: op for op in program.ops for name, _ in op.outputs}


def _argument(op: Op, param: str, index: int = 0) -> str:
    """The name of the value that an op takes; empty if it takes none or a literal."""
    values = op.inputs.get(param, [])
    value = values[index] if index < len(values) else ""
    return value if isinstance(value, str) else ""


def _value(op: Op, param: str, constants: dict[str, Constant]) -> Any:
    values = op.inputs.get(param) or [""]
    constant = constants.get(values[0]) if isinstance(values[0], str) else values[0]
    return constant.item() if constant is not None else None


def image_size(program: Program, component: str | None) -> Resolution | None:
    """The size of the images a component works on; None if it has none, or none of SDXL's."""
    features = {f.name: f for f in [*program.inputs, *program.outputs]}
    first = program.inputs[0].name if program.inputs else ""
    names = {"unet": "sample", "vae_decoder": "image", "vae_encoder": first}
    feature = features.get(names.get(component or "", ""))
    if feature is None or len(feature.shape) < 2:
        return None
    scale = PIXELS_PER_LATENT if component == "unet" else 1
    height, width = feature.shape[-2:]
    try:
        return Resolution(scale * width, scale * height)
    except InputError:
        return None  # the features' shapes are told as they are


def count_weights(program: Program) -> WeightCounts:
    """Counts from types and shapes alone; a value that several constants share counts once."""
    constants = dict(program.constants())
    decoders = [op for op in program.ops if op.type.startswith("constexpr_")]
    inner = {  # what a decoder takes is part of what it decodes to
        value
        for op in decoders
        for values in op.inputs.values()
        for value in values
        if isinstance(value, str)
    }
    counted: dict[frozenset[tuple[str, int]], tuple[str, int]] = {}
    paths = set()

    def place(constant: Constant | None) -> tuple[str, int] | None:
        if constant is None or constant.file is None:
            return None
        paths.add(constant.file.path)
        return str(constant.file.path), constant.offset

    for name, constant in constants.items():
        at = place(constant)
        if at is not None and name not in inner:
            counted[frozenset([at])] = constant.type.dtype, math.prod(constant.type.shape)
    for op in decoders:
        places = [place(constant) for constant in decoder_parts(op, constants).values()]
        at_all = frozenset(p for p in places if p is not None) or frozenset([(op.name, -1)])
        if not inner.intersection(name for name, _ in op.outputs):
            counted[at_all] = stored_format(op, constants), math.prod(op.outputs[0][1].shape)
    formats: Counter[str] = Counter()
    for kind, count in counted.values():
        formats[kind] += count
    size = sum(p.stat().st_size for p in paths if p.is_file())
    return WeightCounts(sum(formats.values()), size, dict(formats.most_common()))


def decoder_parts(op: Op, constants: dict[str, Constant]) -> dict[str, Constant]:
    """What a decoder decodes from: iOS16 keeps it in attributes, iOS18 in inputs."""
    found = dict(op.attributes)
    for param, values in op.inputs.items():
        for value in values:
            constant = constants.get(value) if isinstance(value, str) else value
            if constant is not None:
                found[param] = constant
    return found


def stored_format(op: Op, constants: dict[str, Constant]) -> str:
    """How a decoder's weights are stored: `6-bit palette`, `int8 linear`, or the op's name."""
    parts = decoder_parts(op, constants)
    kind = op.type.removeprefix("constexpr_")
    if kind == "lut_to_dense" and "lut" in parts:
        shape = parts["lut"].type.shape
        if len(shape) in (0, 2):
            return kind
        # iOS16 [2^bits]; iOS18 [groups…, 2^bits, vector]
        entries = shape[0] if len(shape) == 1 else shape[-2]
        is_grouped = len(shape) > 1 and math.prod(shape[:-2]) > 1
        return f"{int(entries).bit_length() - 1}-bit palette{'s' * is_grouped}"
    data = parts.get("quantized_data") or parts.get("data")
    if kind in ("affine_dequantize", "blockwise_shift_scale") and data is not None:
        return f"{data.type.dtype} linear"
    return kind
