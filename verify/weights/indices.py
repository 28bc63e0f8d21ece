"""A palette's indices as they are stored, beside those that are expected."""

from __future__ import annotations

import math

import numpy as np

from verify.mil.blob import SUB_BYTE_BITS, unpack_bits
from verify.mil.program import Constant

AT_ONCE = 8  # indices of any width that fill whole bytes


class Indices:
    """A palette's indices, read piece by piece.

    Args:
        constant: packed bytes (iOS 16), or of the indices' own type (iOS 18).
        bits: of an index.
    """

    def __init__(self, constant: Constant, bits: int) -> None:
        dtype, self.bits = constant.type.dtype, bits
        if dtype not in SUB_BYTE_BITS:
            self.packed = constant.array().reshape(-1).view(np.uint8)
        elif constant.file is not None:
            self.packed = constant.file.packed(constant.offset, dtype, constant.type.shape)
        else:
            self.packed, self.bits = constant.array().reshape(-1).view(np.uint8), 8

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` indices, uint8, from the one at `start`."""
        before = start % AT_ONCE
        first, end = (start - before) * self.bits // 8, -(-(start + count) * self.bits // 8)
        return unpack_bits(self.packed[first:end], self.bits, before + count)[before:]

    def differing(self, start: int, expected: np.ndarray) -> np.ndarray:
        """Where indices are others than expected, counted from `start`.

        What is expected is packed: that is several times faster than unpacking what is stored, and
        what differs is rare.

        Args:
            expected: uint8 [n], each with no more than `bits` bits.
        """
        whole = expected.size - expected.size % AT_ONCE
        if start % AT_ONCE == 0 and self._are_packed(start, expected[:whole]):
            rest = np.flatnonzero(
                self.read(start + whole, expected.size - whole) != expected[whole:]
            )
            return rest + whole
        return np.flatnonzero(self.read(start, expected.size) != expected)

    def _are_packed(self, start: int, expected: np.ndarray) -> bool:
        """Whether these indices, whole groups of eight, are stored."""
        first = start * self.bits // 8
        packed = self.packed[first : first + expected.size * self.bits // 8]
        words = pack_bits(expected, self.bits)
        width = math.gcd(self.bits, 8)  # bytes; eight indices take as many bytes as one has bits
        unit = np.dtype(f"<u{width}")
        stored = packed.view(unit).reshape(-1, self.bits // width)
        made = words.view(unit).reshape(-1, 8 // width)
        return not any((stored[:, i] != made[:, i]).any() for i in range(stored.shape[1]))


def pack_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Every eight values in one little-endian uint64 [n/8], from the least significant bit on.

    Args:
        values: uint8 [n], whole groups of eight, each with no more than `bits` bits.
    """
    words = np.ascontiguousarray(values)
    for width in (8, 16, 32):  # of half a word, whose upper half moves down to the lower's bits
        words = words.view(f"<u{width // 4}")
        moved = words >> width
        moved *= words.dtype.type((1 << width) - (1 << bits * width // 8))
        words = np.subtract(words, moved, out=moved)
    return words
