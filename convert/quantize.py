"""Linear quantization: weights as small integers, a scale and, in the affine form, an offset.

    weight ≈ scale · (data − offset)

This is what coremltools' `linear_quantize_weights` makes (coremltools `optimize/_utils.py`,
`quantize_weight_by_dtype`), with three differences, all where its float16 arithmetic goes wrong:

- it divides by the scale before it is rounded, and in the weight's float16, so that a quotient near
  a half may go to the farther integer; here the division is in float32, by the stored scale;
- a scale is at least what its weights need: denormals, whose scale it rounds to 0, are kept;
- a block of zeros has scale 1; there it divides 0 by 0.

So a weight is at most half a scale from scale · (data − offset), to which decoding adds the
rounding of the product to float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convert.errors import InputError


@dataclass(frozen=True)
class AffineOperands:
    """The operands of iOS16's `constexpr_affine_dequantize`, which macOS 14 reads; axis is 0."""

    quantized_data: np.ndarray  # int8, in the shape of the weight
    zero_point: np.ndarray  # int8 [out]
    scale: np.ndarray  # float16 [out]
    axis: int = 0


@dataclass(frozen=True)
class Quantized:
    """The operands of iOS18's `constexpr_blockwise_shift_scale`.

    Attributes:
        data: int8, in the shape of the weight; for 4 bits from -7 to 7, to be packed (`pack`).
        scale: float16 [out, blocks, 1, …], positive, in the rank of the weight.
        offset: int8 in the shape of scale, or None where it is 0.
    """

    data: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None = None

    def decode(self) -> np.ndarray:
        """float16 in the shape of the weight, bit for bit what either op gives."""
        # The product of float16 and a 9-bit integer is exact in float32: it is rounded once.
        data = _blocks(self.data, self.scale.shape[1]).astype(np.float32)
        if self.offset is not None:
            data -= self.offset[:, :, None].astype(np.float32)
        data *= self.scale[:, :, None].astype(np.float32)
        return data.astype(np.float16).reshape(self.data.shape)

    def affine(self) -> AffineOperands:
        """The same for macOS 14; only for one scale per output channel."""
        assert self.scale.size == len(self.data), self.scale.shape
        scale = self.scale.reshape(-1)
        zero = np.zeros(scale.shape, np.int8) if self.offset is None else self.offset.reshape(-1)
        return AffineOperands(self.data, zero, scale)


def int8_per_channel(weight: np.ndarray, *, symmetric: bool = True) -> Quantized:
    """8-bit integers with one scale per output channel.

    Args:
        weight: float16 [out, in, …], finite.
        symmetric: integers from -127 to 127 without an offset; else from -128 to 127 with one, for
            the channel's range and 0.
    """
    if symmetric:
        return _symmetric(weight, 1, 127)
    blocks = _blocks(weight, 1)
    axes = tuple(range(2, blocks.ndim))
    low = np.minimum(blocks.min(axes, keepdims=True).astype(np.float32), 0)
    high = np.maximum(blocks.max(axes, keepdims=True).astype(np.float32), 0)
    scale = _scale((high - low) / 255)
    offset = np.clip(np.rint(-128 - low / scale), -128, 127)
    data = np.clip(np.rint(blocks / scale + offset), -128, 127).astype(np.int8)
    stored = scale[:, :, 0].astype(np.float16)
    return Quantized(data.reshape(weight.shape), stored, offset[:, :, 0].astype(np.int8))


def int4_per_block(weight: np.ndarray, block_size: int = 32) -> Quantized:
    """4-bit integers from -7 to 7, one scale per `block_size` input channels of an output channel.

    Args:
        weight: float16 [out, in, …], finite; a block spans all of the further axes.

    Raises:
        InputError: `block_size` does not divide the input channels.
    """
    channels = weight.shape[1]
    if block_size < 1 or channels % block_size:
        raise InputError(
            f"{channels} input channels are not divisible into blocks of {block_size}",
            hint="Use a block size that divides them, or int8.",
        )
    return _symmetric(weight, channels // block_size, 7)


def _symmetric(weight: np.ndarray, count: int, largest: int) -> Quantized:
    blocks = _blocks(weight, count)
    magnitude = np.abs(blocks).max(tuple(range(2, blocks.ndim)), keepdims=True)
    scale = _scale(magnitude.astype(np.float32) / largest)
    data = np.rint(blocks / scale).astype(np.int8)
    return Quantized(data.reshape(weight.shape), scale[:, :, 0].astype(np.float16))


def _blocks(weight: np.ndarray, count: int) -> np.ndarray:
    """[out, in, …] as [out, blocks, in / blocks, …]."""
    return weight.reshape(len(weight), count, -1, *weight.shape[2:])


def _scale(exact: np.ndarray) -> np.ndarray:
    """The next float16 value that is not below, as float32; 1 instead of 0."""
    rounded = exact.astype(np.float16)
    above = np.nextafter(rounded, np.float16(np.inf))
    # Rounded down, it would not span the weights: the largest would be cut off.
    scale = np.where(rounded < exact, above, rounded)
    return np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
