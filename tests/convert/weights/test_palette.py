"""Palettes: as good as an exact solver's, packed and decoded as coremltools does it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops import (
    constexpr_lut_to_dense as lut_to_dense_16,
)
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import (
    constexpr_lut_to_dense as lut_to_dense_18,
)
from coremltools.optimize import _utils as coremltools_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.exact_palettes import KINDS, make, optimal_error
from convert.errors import InputError
from convert.weights.palette import PALETTE_BITS, Histogram, Packer, Palette, fit, fit_groups, pack

FINITE = hnp.from_dtype(np.dtype(np.float16), allow_nan=False, allow_infinity=False)


def count(*chunks: np.ndarray) -> Histogram:
    histogram = Histogram()
    for chunk in chunks:
        histogram.add(chunk)
    return histogram


def decode(palette: Palette, weight: np.ndarray) -> np.ndarray:
    return palette.lut[palette.indices(weight)].reshape(weight.shape)


def squared_error(decoded: np.ndarray, weight: np.ndarray) -> float:
    return float(np.sum((decoded.astype(np.float64) - weight.astype(np.float64)) ** 2))


def check_error(weight: np.ndarray, bits: int) -> None:
    error = squared_error(decode(fit(count(weight), bits), weight), weight)
    bound = 1.0015 if bits == 8 else 1.0005
    in_float16 = optimal_error(weight, 1 << bits, float16=True)
    # What is left of sums of squares when they cancel, in the solver.
    noise = 1e-13 * float(np.sum(weight.astype(np.float64) ** 2))
    assert error <= bound * in_float16 + noise
    # No LUT holds the best levels themselves. Where the best LUT is as good, so is ours.
    exact = optimal_error(weight, 1 << bits, float16=False)
    if in_float16 <= (1 + (bound - 1) / 2) * exact:
        assert error <= bound * exact + noise


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_within_the_bound_of_the_exact_optimum(kind: str) -> None:
    for seed in range(20):
        bits = PALETTE_BITS[seed % len(PALETTE_BITS)]
        check_error(make(kind, seed, 1500 if bits == 8 else 4000), bits)


@pytest.mark.slow
@pytest.mark.parametrize("bits", PALETTE_BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_large_tensors_is_within_the_bound(kind: str, bits: int) -> None:
    check_error(make(kind, 99, 640 * 640), bits)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(320, 4, 3, 3), (10240, 1280), (1280, 2560, 3, 3)])
def test_full_size_shapes(shape: tuple[int, ...]) -> None:
    check_error(make("gaussian", 1, math.prod(shape)), 6)


@settings(max_examples=60, deadline=None)
@given(
    distinct=st.lists(FINITE, min_size=1, max_size=16, unique=True),
    bits=st.sampled_from(PALETTE_BITS),
    seed=st.integers(0, 99),
)
def test_few_distinct_values_are_kept_exactly(distinct: list, bits: int, seed: int) -> None:
    values = np.array(distinct[: 1 << bits], np.float16)
    weight = np.random.default_rng(seed).choice(values, 100)
    palette = fit(count(weight), bits)
    np.testing.assert_array_equal(decode(palette, weight), weight)
    assert palette.error(count(weight)) == 0
    assert len(palette.lut) == 1 << bits
    assert palette.bits == bits


@settings(max_examples=60, deadline=None)
@given(
    weight=hnp.arrays(np.float16, st.integers(1, 300), elements=FINITE),
    bits=st.sampled_from(PALETTE_BITS),
)
def test_every_weight_takes_its_nearest_entry(weight: np.ndarray, bits: int) -> None:
    palette = fit(count(weight), bits)
    lut = palette.lut.astype(np.float64)
    assert (np.diff(lut) >= 0).all()
    assert np.isfinite(lut).all()
    distance = np.abs(weight.astype(np.float64)[:, None] - lut)
    chosen = np.take_along_axis(distance, palette.indices(weight)[:, None].astype(int), 1)
    np.testing.assert_array_equal(chosen[:, 0], distance.min(1))
    error = squared_error(decode(palette, weight), weight)
    assert palette.error(count(weight)) == pytest.approx(error)


def test_chunks_and_their_order_do_not_matter() -> None:
    weight = make("gaussian", 3)
    whole = fit(count(weight), 4)
    parts = fit(count(weight[3000:], weight[:7], weight[7:3000]), 4)
    np.testing.assert_array_equal(whole.lut, parts.lut)
    np.testing.assert_array_equal(whole.index_of_code, parts.index_of_code)


def test_minus_zero_is_zero() -> None:
    weight = np.array([-0.0, 0.0, 1.0, -0.0], np.float16)
    palette = fit(count(weight), 1)
    assert palette.lut.tobytes() == np.array([0, 1], np.float16).tobytes()
    assert palette.indices(weight).tolist() == [0, 0, 1, 0]


def test_an_empty_histogram_gives_zeros() -> None:
    assert fit(Histogram(), 2).lut.tolist() == [0, 0, 0, 0]


def test_clusters_that_are_apart_are_found() -> None:
    weight = np.repeat(np.array([0, 1, 10, 11, 20, 21, 30, 31], np.float16), 5)
    assert fit(count(weight), 2).lut.tolist() == [0.5, 10.5, 20.5, 30.5]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), bits=st.sampled_from(PALETTE_BITS))
def test_bits_are_packed_as_coremltools_packs_them(data: st.DataObject, bits: int) -> None:
    elements = st.integers(0, (1 << bits) - 1)
    indices = data.draw(hnp.arrays(np.uint8, st.integers(1, 200), elements=elements))
    expected = coremltools_utils.pack_elements_into_bits(indices, bits)
    np.testing.assert_array_equal(pack(indices, bits), expected)


def test_signed_integers_are_packed_as_coremltools_packs_them() -> None:
    values = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    expected = coremltools_utils.pack_elements_into_bits(values, 4)
    np.testing.assert_array_equal(pack(values, 4), expected)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), bits=st.sampled_from(PALETTE_BITS))
def test_a_stream_packs_as_the_whole(data: st.DataObject, bits: int) -> None:
    lengths = data.draw(st.lists(st.integers(0, 70), max_size=8))
    seed = data.draw(st.integers(0, 9))
    chunks = [
        np.random.default_rng([seed, i]).integers(0, 1 << bits, n).astype(np.uint8)
        for i, n in enumerate(lengths)
    ]
    whole = np.concatenate([np.empty(0, np.uint8), *chunks])
    packer = Packer(bits)
    packed = [packer.add(chunk) for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate([*packed, packer.finish()]), pack(whole, bits))
    assert packer.finish().size == 0


@pytest.mark.parametrize("bits", [bits for bits in PALETTE_BITS if bits != 3])
def test_the_ios16_op_decodes_it(bits: int) -> None:
    weight = make("gaussian", 5, 21 * 5).reshape(21, 5)
    palette = fit(count(weight), bits)
    packed = pack(palette.indices(weight), bits)
    decoded = lut_to_dense_16.decompress(palette.lut, packed, weight.shape)
    np.testing.assert_array_equal(decoded, decode(palette, weight))


@pytest.mark.parametrize("bits", PALETTE_BITS)
def test_the_ios18_op_decodes_groups(bits: int) -> None:
    weight = make("bimodal", 5, 24 * 10 * 9).reshape(24, 10, 3, 3)
    groups = fit_groups(weight, bits, 8)
    assert groups.indices.shape == weight.shape
    assert groups.lut.shape == (3, 1 << bits)
    lut = groups.lut.reshape(3, 1, 1, 1, -1, 1)
    dtype = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
    decoded = lut_to_dense_18.decompress(groups.indices.astype(dtype), lut, None)
    for group, channels in enumerate(np.split(weight, 3)):
        indices = groups.indices[8 * group :][:8]
        np.testing.assert_array_equal(decoded[8 * group :][:8], groups.lut[group][indices])
        # Groups are fitted in less time, and a little less well.
        alone = fit(count(channels), bits).error(count(channels))
        assert squared_error(groups.lut[group][indices], channels) <= 1.02 * alone


def test_a_group_does_not_depend_on_the_others() -> None:
    weight = make("heavy-tailed", 5, 40 * 100).reshape(40, 100)
    whole, part = fit_groups(weight, 3, 2), fit_groups(weight[10:18], 3, 2)
    np.testing.assert_array_equal(whole.lut[5:9], part.lut)
    np.testing.assert_array_equal(whole.indices[10:18], part.indices)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(InputError, match=r"320 output channels .* groups of 48"):
        fit_groups(np.zeros((320, 4), np.float16), 4, 48)
