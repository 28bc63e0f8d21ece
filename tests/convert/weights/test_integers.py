"""Linear quantization: near the weights, and decoded as coremltools does it."""

from __future__ import annotations

import numpy as np
import pytest
from coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops import constexpr_affine_dequantize
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import (
    constexpr_blockwise_shift_scale,
)
from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convert.errors import InputError
from convert.weights.integers import Quantized, int4_per_block, int8_per_channel

SHAPES = [(6, 64), (5, 32, 1, 1), (4, 32, 3, 3)]
METHODS = {
    "int8": int8_per_channel,
    "int4": int4_per_block,
}


def make(shape: tuple[int, ...], shift: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(7).standard_normal(shape) * 0.02 + shift
    return values.astype(np.float16)


def check(weight: np.ndarray, quantized: Quantized) -> None:
    """Within half a scale before the product is rounded, and what the op of iOS18 gives."""
    shape = (len(weight), quantized.scale.shape[1], -1, *weight.shape[2:])
    scale = quantized.scale[:, :, None].astype(np.float64)
    product = scale * quantized.data.reshape(shape).astype(np.float64)
    difference = np.abs(product - weight.reshape(shape).astype(np.float64))
    assert (difference <= scale * (0.5 + 1e-5)).all()
    expected = constexpr_blockwise_shift_scale.decompress(quantized.data, quantized.scale, None)
    np.testing.assert_array_equal(quantized.decode(), expected)
    assert np.isfinite(expected).all()
    assert quantized.scale.dtype == np.float16
    assert quantized.data.dtype == np.int8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0, 0.1, -1])
def test_weights_survive(method: str, shape: tuple[int, ...], shift: float) -> None:
    weight = make(shape, shift)
    check(weight, METHODS[method](weight))


@settings(max_examples=100, deadline=None)
@given(
    weight=hnp.arrays(
        np.float16,
        (3, 32),
        elements=hnp.from_dtype(np.dtype(np.float16), allow_nan=False, allow_infinity=False),
    ),
    method=st.sampled_from(list(METHODS)),
)
def test_any_finite_weight_survives(weight: np.ndarray, method: str) -> None:
    check(weight, METHODS[method](weight))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_op_of_macos14_decodes_the_same(shape: tuple[int, ...]) -> None:
    quantized = int8_per_channel(make(shape, 0.01))
    decoded = constexpr_affine_dequantize.decompress(
        quantized.data, np.zeros(shape[0], np.int8), quantized.scale.reshape(-1), 0
    )
    np.testing.assert_array_equal(decoded, quantized.decode())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_coremltools_does_in_float32(method: str, shape: tuple[int, ...]) -> None:
    weight = make(shape, 0.01)
    ours = METHODS[method](weight)
    theirs = linear_quantize_weights.blockwise_compress(
        weight.astype(np.float32),
        nbits=4 if method == "int4" else 8,
        mode="LINEAR_SYMMETRIC",
        signed=True,
        block_sizes=[1, 32 if method == "int4" else 0, *[0] * (weight.ndim - 2)],
    )
    assert theirs is not None
    assert ours.scale.shape == theirs.scale.shape
    np.testing.assert_allclose(ours.scale.astype(np.float32), theirs.scale, rtol=2**-10)
    difference = ours.data.astype(int) - np.asarray(theirs.data).astype(int)
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 0.1  # the scale is another float16
    assert theirs.offset is None


@pytest.mark.parametrize("method", METHODS)
def test_zeros_and_denormals_are_kept(method: str) -> None:
    weight = np.zeros((3, 32), np.float16)
    weight[1, ::3] = 2.0**-24
    weight[2] = -0.0
    np.testing.assert_array_equal(METHODS[method](weight).decode(), weight)


def test_blocks_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(InputError, match=r"40 input channels .* blocks of 32"):
        int4_per_block(np.zeros((8, 40), np.float16))
