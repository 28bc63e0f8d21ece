"""Faults in the stored weights of a package, each planted in its weight file and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.weights.palette import pack
from tests.support.packages import edit_weights
from verify.mil import Constant, load_program
from verify.mil.blob import packed_size, unpack_bits
from verify.weights.find import StoredWeight, find_weights

Plant = Callable[[Path, Checkpoint, str, np.random.Generator], tuple[str, ...]]


def stored_weights(package: Path, source: Checkpoint, component: str) -> dict[str, StoredWeight]:
    """The weights that a package has in its weight file, by name."""
    found = find_weights(load_program(package), source.component_tensors(component))
    return {
        name: weight
        for name, weight in found.weights.items()
        if any(part.file is not None for part in weight.parts.values())
    }


def one_bit(
    package: Path, source: Checkpoint, component: str, random: np.random.Generator
) -> tuple[str, ...]:
    """The lowest bit of one weight that is not compressed."""
    name, value = _choose(package, source, component, "plain", "value", random)
    _rewrite(package, value, lambda data: _flip(data, int(random.integers(len(data) // 2)) * 2))
    return (name,)


def five_percent_more(
    package: Path, source: Checkpoint, component: str, random: np.random.Generator
) -> tuple[str, ...]:
    """A small tensor × 1.05."""
    stored = stored_weights(package, source, component)
    plain = [name for name, weight in stored.items() if weight.form == "plain"]
    name = min(plain, key=lambda name: (stored[name].tensor.size, random.random()))
    value = stored[name].parts["value"]

    def scale(data: np.ndarray) -> None:
        values = data.view(np.float16 if value.type.dtype == "fp16" else np.float32)
        values[:] = values * 1.05 + 1e-3  # zeros, too

    _rewrite(package, value, scale)
    return (name,)


def exchanged(
    package: Path, source: Checkpoint, component: str, random: np.random.Generator
) -> tuple[str, ...]:
    """Two tensors of equal shape and form, each with the other's values."""
    by_shape: dict[object, list[StoredWeight]] = {}
    for weight in stored_weights(package, source, component).values():
        types = tuple((role, part.type) for role, part in weight.parts.items() if part.file)
        values = [part.array().tobytes() for part in weight.parts.values()]
        twins = by_shape.setdefault((weight.form, types), [])
        if all(values != [part.array().tobytes() for part in t.parts.values()] for t in twins):
            twins.append(weight)
    pairs = [twins for twins in by_shape.values() if len(twins) > 1]
    one, other = random.choice(len(twins := pairs[random.integers(len(pairs))]), 2, replace=False)
    a, b = twins[one], twins[other]
    for role, part in a.parts.items():
        if part.file is not None:
            first, second = _bytes(package, part), _bytes(package, b.parts[role])
            _rewrite(package, part, lambda data, new=second: data.__setitem__(slice(None), new))
            _rewrite(
                package, b.parts[role], lambda data, new=first: data.__setitem__(slice(None), new)
            )
    return a.tensor.name, b.tensor.name


def palette_index(
    package: Path, source: Checkpoint, component: str, random: np.random.Generator
) -> tuple[str, ...]:
    """One index of a palette: that of another value."""
    name, indices = _choose(package, source, component, "palettes", "indices", random)
    weight = stored_weights(package, source, component)[name]
    lut = weight.parts["lut"]
    groups = 1 if len(lut.type.shape) == 1 else lut.type.shape[0]
    tables = lut.array().reshape(groups, -1)
    bits = tables.shape[1].bit_length() - 1
    at = int(random.integers(weight.tensor.size))
    table = tables[at * groups // weight.tensor.size]

    def change(data: np.ndarray) -> None:
        every = unpack_bits(data, bits, weight.tensor.size).copy()
        others = np.flatnonzero(table != table[every[at]])
        every[at] = random.choice(others)
        data[:] = pack(every, bits)

    _rewrite(package, indices, change)
    return (name,)


def table_entry(
    package: Path, source: Checkpoint, component: str, random: np.random.Generator
) -> tuple[str, ...]:
    """One entry of a look-up table, a quarter of the way to its neighbour, at least two steps."""
    name, lut = _choose(package, source, component, "palettes", "lut", random)
    shape = lut.type.shape
    size = shape[0] if len(shape) == 1 else shape[-2]

    def change(data: np.ndarray) -> None:
        stored = np.float16 if lut.type.dtype == "fp16" else np.float32
        tables = data.view(stored).reshape(-1, size)
        table = tables[random.integers(len(tables))]
        at = int(random.choice(np.flatnonzero(np.diff(table))))
        least = 2 * np.spacing(np.abs(table[at]).astype(np.float16))
        table[at] += max(stored(0.25) * (table[at + 1] - table[at]), least)

    _rewrite(package, lut, change)
    return (name,)


def integer(
    package: Path, source: Checkpoint, component: str, random: np.random.Generator
) -> tuple[str, ...]:
    """One integer more or less by one."""
    stored = stored_weights(package, source, component)
    name = str(random.choice([n for n, w in stored.items() if w.form == "integers"]))
    parts = stored[name].parts
    data = parts.get("quantized_data") or parts["data"]

    def change(raw: np.ndarray) -> None:
        if data.type.dtype == "int8":
            at = int(random.integers(len(raw)))
            value = int(raw.view(np.int8)[at])
            raw.view(np.int8)[at] = value - 1 if value > 0 else value + 1
        else:
            every = unpack_bits(raw, 4, stored[name].tensor.size).copy()
            at = int(random.integers(len(every)))
            signed = (int(every[at]) ^ 8) - 8
            every[at] = (signed - 1 if signed > 0 else signed + 1) & 15
            raw[:] = pack(every, 4)

    _rewrite(package, data, change)
    return (name,)


def scale(
    package: Path, source: Checkpoint, component: str, random: np.random.Generator
) -> tuple[str, ...]:
    """One scale of integers × 1.02."""
    name, scales = _choose(package, source, component, "integers", "scale", random)

    def change(data: np.ndarray) -> None:
        values = data.view(np.float16)
        values[random.integers(len(values))] *= np.float16(1.02)

    _rewrite(package, scales, change)
    return (name,)


PLANTS: dict[str, dict[str, Plant]] = {  # form → faults that it can have
    "plain": {"one bit": one_bit, "× 1.05": five_percent_more, "exchanged": exchanged},
    "palettes": {"palette index": palette_index, "table entry": table_entry},
    "integers": {"integer": integer, "scale": scale},
}


def _choose(
    package: Path,
    source: Checkpoint,
    component: str,
    form: str,
    role: str,
    random: np.random.Generator,
) -> tuple[str, Constant]:
    stored = stored_weights(package, source, component)
    fitting = [
        name
        for name, weight in stored.items()
        if weight.form == form and weight.parts[role].file is not None
    ]
    name = str(random.choice(fitting))
    return name, stored[name].parts[role]


def _rewrite(package: Path, constant: Constant, change: Callable[[np.ndarray], object]) -> None:
    assert constant.file is not None
    start, size = constant.file.check(constant.offset, constant.type.dtype, constant.type.shape)
    assert size == packed_size(constant.type.dtype, int(np.prod(constant.type.shape)))
    edit_weights(package, lambda data: change(data[start : start + size]))


def _bytes(package: Path, constant: Constant) -> np.ndarray:
    assert constant.file is not None
    start, size = constant.file.check(constant.offset, constant.type.dtype, constant.type.shape)
    found = next(package.rglob("weight.bin")).read_bytes()[start : start + size]
    return np.frombuffer(found, np.uint8)


def _flip(data: np.ndarray, at: int) -> None:
    data[at] ^= 1
