"""Palettes: weights as indices into a small look-up table (LUT), by k-means on a histogram.

A float16 tensor has at most 63,487 distinct finite values, so k-means on it is weighted k-means on
the histogram of its codes (`convert.weights.kmeans`), whatever its size. Two passes make a
palettized weight, neither of which needs more than a chunk of it: `Histogram.add`; then, with the
palette of `fit`, `Palette.indices` and `Packer.add`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from convert.checkpoint.tensors import Tensor
from convert.errors import InputError
from convert.weights import kmeans
from convert.weights.kmeans import CODES, INFINITY, SIZE, VALUES, ZERO

PALETTE_BITS = (1, 2, 3, 4, 6, 8)

_COUNTED_AT_ONCE = 1 << 17  # what numpy makes of as many codes stays in the cache
_GROUPS_AT_ONCE = 16  # keeps the tables of a batch near 25 MB


class Histogram:
    """How often each float16 code occurs in the tensors added so far."""

    def __init__(self) -> None:
        self.counts = np.zeros(1 << 16, np.int64)  # by code

    def add(self, values: np.ndarray) -> None:
        """Count a float16 array of any shape; its values must be finite (`Tensor.chunks` sees)."""
        codes = _codes(values).reshape(-1)
        for start in range(0, len(codes), _COUNTED_AT_ONCE):
            piece = codes[start : start + _COUNTED_AT_ONCE]
            self.counts += np.bincount(piece, minlength=1 << 16)

    def by_position(self) -> np.ndarray:
        """Counts int64 [63487] of the finite values in ascending order; -0 counts as +0."""
        assert not self.counts[INFINITY:0x8000].any(), "an infinity or NaN"
        assert not self.counts[0x8000 + INFINITY :].any(), "an infinity or NaN"
        counts = self.counts[CODES]
        counts[ZERO] += self.counts[0x8000]
        return counts


@dataclass(frozen=True)
class Palette:
    """A LUT and the nearest entry of every float16 value.

    Attributes:
        lut: float16 [2^bits], ascending; unused entries repeat the last one.
        index_of_code: uint8 [65536], from a float16 code to its index; infinities and NaNs get 0.
    """

    lut: np.ndarray
    index_of_code: np.ndarray

    @property
    def bits(self) -> int:
        """Bits of an index: a table has 2^bits entries."""
        return int(math.log2(len(self.lut)))

    def indices(self, values: np.ndarray) -> np.ndarray:
        """Flat uint8 indices of a float16 array of any shape."""
        # Every index is in range; "wrap" only spares numpy a copy of the result.
        return np.take(self.index_of_code, _codes(values), mode="wrap")

    def error(self, histogram: Histogram) -> float:
        """The sum of squared differences between the counted weights and their entries."""
        counts = histogram.by_position()
        difference = VALUES - self.lut.astype(np.float64)[self.index_of_code[CODES]]
        return float(np.sum(counts * difference**2))


@dataclass(frozen=True)
class GroupedPalettes:
    """One palette per group of output channels, as iOS18's `constexpr_lut_to_dense` takes them.

    Attributes:
        lut: float16 [groups, 2^bits]; the op wants it as [groups, 1, …, 2^bits, 1].
        indices: uint8, in the shape of the weight.
    """

    lut: np.ndarray
    indices: np.ndarray


def fit(histogram: Histogram, bits: int, *, thorough: bool = True) -> Palette:
    """The palette of 2^bits entries with (nearly) the least squared error; see the module.

    Up to 2^bits distinct values are kept exactly. An empty histogram gives a LUT of zeros.

    Args:
        bits: 1, 2, 3, 4, 6 or 8, the widths that Core ML has.
        thorough: else within about 1.5 % of the least error, in a third of the time.
    """
    assert bits in PALETTE_BITS, bits
    return _palette(kmeans.solve(histogram.by_position()[None], 1 << bits, thorough=thorough)[0])


def palette_errors(tensor: Tensor) -> dict[str, float]:
    """Squared errors of a tensor's palettes, by bits; one for the whole tensor, within 1.5 %.

    That of 8 bits is taken for a sixteenth of that of 6, as it is of many values (Panter and Dite,
    1951): to fit it would take longer than all others together.
    """
    histogram = Histogram()
    for chunk in tensor.chunks(np.float16):
        histogram.add(chunk)
    errors = {
        str(bits): fit(histogram, bits, thorough=False).error(histogram)
        for bits in PALETTE_BITS
        if bits != 8
    }
    return {**errors, "8": errors["6"] / 16}


def fit_groups(weight: np.ndarray, bits: int, group_size: int) -> GroupedPalettes:
    """A palette for every `group_size` successive output channels of a weight.

    There may be half a million groups in a network, so they are fitted in less time than `fit`
    takes: their error is mostly within 0.1 % of the optimum, in small groups within 1.5 %.

    Args:
        weight: float16 [out, …], finite.

    Raises:
        InputError: `group_size` does not divide the output channels.
    """
    assert bits in PALETTE_BITS, bits
    channels = weight.shape[0]
    if group_size < 1 or channels % group_size:
        raise InputError(
            f"{channels} output channels are not divisible into groups of {group_size}",
            hint="Use a group size that divides them, or one palette per tensor.",
        )
    groups = channels // group_size
    rows = np.ascontiguousarray(weight).reshape(groups, -1)
    luts = np.empty((groups, 1 << bits), np.float16)
    indices = np.empty(rows.shape, np.uint8)
    for start in range(0, groups, _GROUPS_AT_ONCE):
        batch = rows[start : start + _GROUPS_AT_ONCE]
        counts = np.empty((len(batch), SIZE), np.int64)
        for row, values in enumerate(batch):
            histogram = Histogram()
            histogram.add(values)
            counts[row] = histogram.by_position()
        for row, levels in enumerate(kmeans.solve(counts, 1 << bits, thorough=False), start):
            palette = _palette(levels)
            luts[row], indices[row] = palette.lut, palette.indices(rows[row])
    return GroupedPalettes(luts, indices.reshape(weight.shape))


def pack(indices: np.ndarray, bits: int) -> np.ndarray:
    """Indices below 2^bits as bytes: uint8 [ceil(n · bits / 8)], the last byte filled with zeros.

    The first index is in the lowest bits; one that does not fit continues in the next byte. So do
    the `indices` of iOS16's `constexpr_lut_to_dense` and MILBlob's uint1 to uint6 and int4.
    Source: coremltools `pack_elements_into_bits` and `SubByteTypes.cpp`.

    Args:
        indices: uint8 (or int8, of which the low bits are taken) of any shape.
    """
    flat = np.ascontiguousarray(indices).reshape(-1).view(np.uint8)
    if bits == 8:
        return flat.copy()
    padded = np.zeros(-(-flat.size // 32) * 32, np.uint8) if flat.size % 32 else flat
    padded[: flat.size] = flat
    # Eight indices in a word are pushed together by twos, then by fours, then all.
    words = padded.view("<u8") & np.uint64(0x0101010101010101 * ((1 << bits) - 1))
    for width in (8, 16, 32):
        low = sum(((1 << width) - 1) << place for place in range(0, 64, 2 * width))
        gap = np.uint64((8 - bits) * width // 8)
        words = (words & np.uint64(low)) | (words & np.uint64(low << width)) >> gap
    packed = words.astype({1: "<u1", 2: "<u2", 3: "<u4", 4: "<u4", 6: "<u8"}[bits], copy=False)
    if bits in (3, 6):  # a quarter of every word is free: four words go into three
        quarter = packed.dtype.type(2 * packed.dtype.itemsize)
        a, b, c, d = packed.reshape(-1, 4).T
        packed = np.empty((len(a), 3), packed.dtype)
        packed[:, 0] = a | b << 3 * quarter
        packed[:, 1] = b >> quarter | c << 2 * quarter
        packed[:, 2] = c >> 2 * quarter | d << quarter
    return packed.reshape(-1).view(np.uint8)[: -(-flat.size * bits // 8)]


class Packer:
    """`pack` for a stream: chunks of any length, of which the bytes follow one another."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._rest = np.empty(0, np.uint8)  # indices that do not fill bytes yet

    def add(self, indices: np.ndarray) -> np.ndarray:
        """The bytes that are complete with these indices."""
        flat = indices.reshape(-1)
        missing = -len(self._rest) % 32
        head = np.concatenate([self._rest, flat[:missing]])
        if len(head) % 32:
            self._rest = head
            return np.empty(0, np.uint8)
        whole = len(flat) - (len(flat) - missing) % 32
        self._rest = flat[whole:].copy()
        body = pack(flat[missing:whole], self.bits)
        return np.concatenate([pack(head, self.bits), body]) if len(head) else body

    def finish(self) -> np.ndarray:
        """The bytes that are left, the last one filled with zeros."""
        rest, self._rest = self._rest, self._rest[:0]
        return pack(rest, self.bits)


def _codes(values: np.ndarray) -> np.ndarray:
    assert values.dtype == np.float16, values.dtype
    return np.ascontiguousarray(values).reshape(-1).view(np.uint16)


def _palette(levels: np.ndarray) -> Palette:
    """The palette of ascending positions [2^bits]."""
    index_of_code = np.zeros(1 << 16, np.uint8)
    ends = kmeans.last_nearer(levels[:-1], levels[1:])
    sizes = np.diff(ends, prepend=-1, append=SIZE - 1)
    index_of_code[CODES] = np.repeat(np.arange(len(levels), dtype=np.uint8), sizes)
    index_of_code[0x8000] = index_of_code[0]
    return Palette(CODES[levels].view(np.float16), index_of_code)
