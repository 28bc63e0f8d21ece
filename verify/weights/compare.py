"""One stored weight beside the checkpoint's tensor, element by element, in pieces.

What a recipe makes of a tensor is told here a second time, by what may be stored and not by how the
converter works: a weight that is not compressed is the cast, bit for bit; an index is that of a
nearest entry, and the table as good as its width allows; an integer is the nearest to
weight ÷ scale, and the scale no larger than the largest weight asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from convert.checkpoint.tensors import Tensor
from convert.weights.palette import Histogram, fit
from verify.artifact.stored import PALETTE_SLACK
from verify.mil.blob import NUMPY_DTYPES
from verify.mil.program import Constant
from verify.weights.find import StoredWeight
from verify.weights.indices import Indices
from verify.weights.palettes import OffCentre, Table, least_central

# Of 46 tables of coremltools' k-means for 3,000 to 9,000 weights, the worst was at 1.18.
SETTLED_ELSEWHERE = 1.25
LARGEST = {"int8": 127, "int4": 7}
PIECE = 1 << 17  # elements that are compared at once; what numpy makes of them stays in the cache
# Quotients are of float32; another quantizer divides in float16, whose step at 127 is 1/16.
NEAREST, NEAREST_OF_OTHERS = 0.5 + 2**-16, 0.5 + 2**-4


@dataclass(frozen=True)
class WeightFault:
    """A weight that is not what the recipe makes of the checkpoint's.

    Attributes:
        index: of the first element that differs, in the checkpoint's shape; None for all of it.
        count: how many elements differ.
    """

    tensor: str
    index: tuple[int, ...] | None
    expected: str
    found: str
    count: int = 1

    def __str__(self) -> str:
        at = "" if self.index is None else str(list(self.index))
        more = f", and {self.count - 1:,} more differ" if self.count > 1 else ""
        return f"`{self.tensor}`{at} is {self.found}, {self.expected} expected{more}"


def compare_weight(weight: StoredWeight, *, is_ours: bool = True) -> WeightFault | None:
    """The first deviation of a stored weight; None if it is what it must be.

    Args:
        is_ours: whether our converter has made it; other quantizers round a little otherwise.

    Raises:
        InputError: the checkpoint or the weight file cannot be read.
        NotImplementedError: a form that nothing here judges.
    """
    tensor, parts = weight.tensor, weight.parts
    if math.prod(weight.shape) != tensor.size:
        shape = list(weight.shape)
        return WeightFault(tensor.name, None, f"{list(tensor.shape)}", f"of shape {shape}")
    if weight.form == "plain":
        return compare_values(tensor, parts["value"])
    if weight.form == "palettes":
        lut = parts["lut"]
        groups = 1 if len(lut.type.shape) == 1 else lut.type.shape[0]
        entries = lut.array().reshape(-1).astype(np.float64)
        size = entries.size // groups
        if size & (size - 1) or (len(lut.type.shape) > 1 and lut.type.shape[-1] != 1):
            raise NotImplementedError("tables of vectors, or along another axis than the first")
        indices = Indices(parts["indices"], size.bit_length() - 1)
        if groups == 1:
            return _palettes(tensor, entries, indices, is_ours=is_ours)
        return _groups(tensor, entries.reshape(groups, size), indices)
    if weight.form == "integers":
        return _integers(tensor, parts, is_ours=is_ours)
    raise NotImplementedError("a form that is not known")


def compare_values(tensor: Tensor, constant: Constant) -> WeightFault | None:
    """A weight that is stored as it is: the cast of the checkpoint's, bit for bit."""
    dtype = NUMPY_DTYPES[constant.type.dtype]
    if dtype.kind != "f":
        return WeightFault(tensor.name, None, "a float", f"of {constant.type.dtype}")
    stored = constant.array().reshape(-1)
    bits = np.dtype(f"u{dtype.itemsize}")
    start, first, count, values = 0, None, 0, ("", "")
    for chunk in tensor.chunks(dtype):
        found = stored[start : start + chunk.size]
        differs = found.view(bits) != chunk.view(bits)
        if differs.any():
            count += int(np.count_nonzero(differs))
            if first is None:
                at = int(np.argmax(differs))
                first, values = start + at, (_written(chunk[at]), _written(found[at]))
        start += chunk.size
    if first is None:
        return None
    return WeightFault(tensor.name, _index(tensor, first), *values, count)


def _palettes(
    tensor: Tensor, entries: np.ndarray, indices: Indices, *, is_ours: bool
) -> WeightFault | None:
    """One table, [2^bits], for the whole tensor."""
    table, counts = Table(entries), np.zeros(1 << 16, np.int64)
    nearest = torch.from_numpy(table.nearest)
    places = torch.empty(0, dtype=torch.int32)
    start, first, count, values = 0, None, 0, ("", "")
    for chunk in tensor.chunks(np.dtype(np.float16)):
        codes = chunk.view(np.uint16)
        if len(places) < len(codes):
            places = torch.empty(len(codes), dtype=torch.int32)
        where = places[: len(codes)]
        np.copyto(where.numpy(), codes)
        counts += torch.bincount(where, minlength=1 << 16).numpy()  # in half of numpy's time
        expected = torch.index_select(nearest, 0, where).numpy()
        suspect = indices.differing(start, expected)
        if suspect.size:
            found = indices.read(start, len(chunk))
            near = table.is_as_near(codes[suspect], found[suspect], were_exact=not is_ours)
            wrong = suspect[~near]
            if wrong.size and first is None:
                at = int(wrong[0])
                first = start + at
                values = _entries(chunk[at], expected[at], found[at], entries)
            count += wrong.size
        start += len(chunk)
    if first is not None:
        return WeightFault(tensor.name, _index(tensor, first), *values, count)
    return _table(tensor, table, counts, is_ours=is_ours)


def _table(
    tensor: Tensor, table: Table, counts: np.ndarray, *, is_ours: bool
) -> WeightFault | None:
    """Whether a table is as good as its width allows, for weights counted by their codes.

    Ours has the least error of all tables near it. coremltools stops a little short of that, so
    its error is compared with the best one's; or, in small tensors, where its tables may have
    settled elsewhere, with what moving every entry once more would gain.
    """
    if is_ours:
        return _off_centre(tensor, table.least_central(counts))
    histogram = Histogram()
    histogram.counts = counts
    bits = len(table.entries).bit_length() - 1
    best = fit(histogram, bits, thorough=False).error(histogram)
    error, bound = table.squared_error(counts), PALETTE_SLACK * best
    has_settled = error <= PALETTE_SLACK * table.moved(counts).squared_error(counts)
    if error <= bound or (has_settled and error <= SETTLED_ELSEWHERE * best):
        return None
    return WeightFault(
        f"{tensor.name}: its table", None, f"a squared error of at most {bound:.4g}", f"{error:.4g}"
    )


def _off_centre(tensor: Tensor, found: OffCentre | None) -> WeightFault | None:
    if found is None:
        return None
    which = f" of group {found.table}" if found.table else ""
    return WeightFault(
        tensor.name,
        None,
        f"{found.mean:.6g}, the mean of the weights it stands for,",
        f"stored by a table{which} whose entry {found.entry} is {found.value:.6g}",
    )


def _groups(tensor: Tensor, tables: np.ndarray, indices: Indices) -> WeightFault | None:
    """Tables [groups, 2^bits], each for as many successive output channels."""
    groups, _ = tables.shape
    rows = tensor.read(np.float16).reshape(groups, -1)
    width = rows.shape[1]
    step = max(1, PIECE // width)
    for start in range(0, groups, step):
        values = rows[start : start + step].astype(np.float64)
        some = tables[start : start + step]
        found = indices.read(start * width, values.size).reshape(values.shape)
        distance = np.abs(values - np.take_along_axis(some, found.astype(np.intp), 1))
        wrong = distance > _least_distance(values, some)
        if wrong.any():
            at = int(np.argmax(wrong))
            group, column = divmod(at, width)
            value, table = values[group, column], some[group]
            nearest = int(np.argmin(np.abs(table - value)))
            told = _entries(value, nearest, found[group, column], table)
            where = _index(tensor, start * width + at)
            return WeightFault(tensor.name, where, *told, int(np.count_nonzero(wrong)))
        off = least_central(some, found, values)
        if off is not None:
            return _off_centre(tensor, replace(off, table=start + off.table))
    return None


def _least_distance(values: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """How far each of the values [groups, n] is from its group's nearest entry."""
    least = np.full(values.shape, np.inf)
    for entry in tables.T:
        np.minimum(least, np.abs(values - entry[:, None]), out=least)
    return least


def _integers(
    tensor: Tensor, parts: Mapping[str, Constant], *, is_ours: bool
) -> WeightFault | None:
    """Integers [out, …] with a scale for each output channel, or for each block of inputs of it."""
    data = parts.get("quantized_data") or parts["data"]
    zero = parts.get("zero_point") or parts.get("offset")
    if zero is not None and zero.array().any():
        raise NotImplementedError("integers with a zero point")
    largest = LARGEST.get(data.type.dtype)
    if largest is None:
        raise NotImplementedError(f"integers of {data.type.dtype}")
    weight = tensor.read(np.float32).reshape(tensor.shape[0], -1)
    scale = parts["scale"].array().astype(np.float32)
    blocks = scale.size // len(weight)
    if blocks * len(weight) != scale.size or weight.shape[1] % blocks:
        raise NotImplementedError("scales along another axis than the first two")
    shape = len(weight), blocks, -1
    weight, scale = weight.reshape(shape), scale.reshape(len(weight), blocks, 1)
    found = data.array().reshape(weight.shape)
    quotient = weight / scale
    allowed = NEAREST if is_ours else NEAREST_OF_OTHERS
    clipped = np.clip(quotient, -largest, largest)
    wrong = np.abs(clipped - found) > allowed
    if wrong.any():
        at = int(np.argmax(wrong))
        expected, stored = f"{np.rint(clipped.flat[at]):.0f}", f"{found.flat[at]}"
        return WeightFault(
            tensor.name,
            _index(tensor, at),
            f"the integer {expected}",
            f"stored as {stored}",
            int(np.count_nonzero(wrong)),
        )
    magnitude = np.abs(weight).max(axis=2, keepdims=True)
    least = magnitude / np.float32(largest)
    step = np.spacing(scale.astype(np.float16)).astype(np.float32)
    # The next float16 above, or (of other quantizers, and where it would overflow) below.
    poor = (np.abs(scale - least) > step) & (magnitude > 0)
    if poor.any():
        at = int(np.argmax(poor))
        which = f"{tensor.name}: scale {at} of its integers"
        return WeightFault(which, None, f"{least.flat[at]:.6g}", f"{scale.flat[at]:.6g}")
    return None


def _entries(value: Any, nearest: Any, found: Any, table: np.ndarray) -> tuple[str, str]:
    """Expected and found of an index, in words."""
    told = (f"{table[index]:.6g} (entry {index})" for index in (nearest, found))
    expected, stored = told
    return f"{expected}, the nearest to {float(value):.6g},", stored


def _written(value: Any) -> str:
    return f"{float(value):.9g}"


def _index(tensor: Tensor, flat: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, tensor.shape or (1,)))
