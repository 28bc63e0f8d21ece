"""Values as the text of a compiled model spells them.

Numbers are exact: floats are C99 hexadecimal with the shortest mantissa (`0x1.8p-3`), as `%a`
prints them, float16 and its subnormals included; integers are decimal. Arrays are nested brackets
in row-major order and never abbreviated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from convert.errors import CannotExecute

# How `TensorValue.bytes` holds each type that it is used for (coremltools `MIL.proto`).
PACKED: dict[str, np.dtype] = {
    "fp16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "fp32": np.dtype("<f4"),
    "fp64": np.dtype("<f8"),
    "bool": np.dtype("?"),
}
BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}


def hex_float(value: float) -> str:
    """A float as C99 hexadecimal: `0x1.8p-3`, `-0x0p+0`, `inf`, `nan`."""
    if not math.isfinite(value):
        return repr(value)
    mantissa, exponent = value.hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}"


def quote(text: str) -> str:
    """A string in double quotes, C's escapes for what cannot stand there.

    Raises:
        CannotExecute: a control character, whose text is not known.
    """
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    for c in text:
        if c not in escapes and (c < " " or c == "\x7f"):
            raise CannotExecute(f"the text {text!r}, with a control character")
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'


def literals(tensor: Any, dtype: str, count: int) -> list[str]:
    """The elements of a protobuf `TensorValue`, each as text.

    Args:
        dtype: the MIL name of the element type.
        count: how many there must be.

    Raises:
        CannotExecute: another number of values, or a type that is not known.
    """
    kind = tensor.WhichOneof("value")
    values: Any = getattr(tensor, kind).values if kind else ()
    if kind == "bytes":
        values = _unpack(values, dtype, count)
    if kind is not None and kind not in _kinds(dtype):
        raise CannotExecute(f"a constant of type {dtype} whose values are {kind}")
    if len(values) != count:
        raise CannotExecute(f"a constant of {count} {dtype} has {len(values)} values")
    if kind == "strings":
        return [quote(v) for v in values]
    if dtype.startswith(("fp", "bf")):
        return [hex_float(float(v)) for v in values]
    if dtype == "bool":
        return ["true" if v else "false" for v in values]
    return [str(v) for v in values]


def _kinds(dtype: str) -> tuple[str, ...]:
    """The fields of a `TensorValue` that can hold elements of a type."""
    if dtype in ("string", "bool"):
        return (f"{dtype}s",)
    return ("floats", "doubles", "bytes") if dtype[0] in "fb" else ("ints", "longInts", "bytes")


def nested(elements: list[str], shape: tuple[int, ...]) -> str:
    """Elements in row-major order as nested brackets; a scalar stands by itself."""
    if not shape:
        return elements[0]

    def level(at: int, start: int, end: int) -> Iterator[str]:
        if at == len(shape) - 1:
            yield from elements[start:end]
            return
        step = (end - start) // shape[at] if shape[at] else 0
        for index in range(shape[at]):
            first = start + index * step
            yield "[" + ", ".join(level(at + 1, first, first + step)) + "]"

    return "[" + ", ".join(level(0, 0, len(elements))) + "]"


def _unpack(data: bytes, dtype: str, count: int) -> list[Any]:
    if dtype in BITS:
        bits = BITS[dtype]
        stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        if len(data) != math.ceil(count * bits / 8):
            raise CannotExecute(f"a constant of {count} {dtype} has {len(data)} bytes")
        places = 1 << np.arange(bits)
        if dtype.startswith("int"):
            places[-1] = -places[-1]
        return (stream[: count * bits].reshape(count, bits) @ places).tolist()
    if dtype == "bf16":
        high = np.frombuffer(data, "<u2").astype("<u4") << 16
        return high.view("<f4").tolist()
    if dtype not in PACKED:
        raise CannotExecute(f"a constant of type {dtype} cannot be written as text")
    if len(data) % PACKED[dtype].itemsize:
        raise CannotExecute(f"a constant of {count} {dtype} has {len(data)} bytes")
    return np.frombuffer(data, PACKED[dtype]).tolist()
