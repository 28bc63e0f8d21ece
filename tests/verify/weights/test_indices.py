"""Indices as they are stored, beside those that are expected: whichever are others are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verify.mil.blob import unpack_bits
from verify.mil.program import Constant, TensorType
from verify.weights.indices import Indices, pack_bits


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@given(data=st.data())
def test_what_differs_is_found_wherever_it_is(bits: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 70))
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    stored = random.integers(0, 1 << bits, count).astype(np.uint8)
    start = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(start + 1, count))
    wrong = data.draw(st.sets(st.integers(0, end - start - 1), max_size=3))
    expected = stored[start:end].copy()
    for place in wrong:
        expected[place] ^= data.draw(st.integers(1, (1 << bits) - 1))
    found = Indices(packed(stored, bits), bits)
    assert found.differing(start, expected).tolist() == sorted(wrong)
    np.testing.assert_array_equal(found.read(start, end - start), stored[start:end])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_eight_values_are_packed_as_they_are_unpacked(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, 64).astype(np.uint8)
    words = pack_bits(values, bits).view(np.uint8).reshape(8, 8)
    assert not words[:, bits:].any()
    np.testing.assert_array_equal(unpack_bits(words[:, :bits].reshape(-1), bits, 64), values)


def packed(values: np.ndarray, bits: int) -> Constant:
    """Indices as iOS 16 has them: bytes, packed bit by bit."""
    flat = np.unpackbits(values[:, None], axis=1, count=bits, bitorder="little").reshape(-1)
    data = np.packbits(flat, bitorder="little")
    return Constant(TensorType("uint8", data.shape), data)
