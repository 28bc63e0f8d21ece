"""Linear quantization: weights as small integers and a scale.

    weight ≈ scale · data

This is what coremltools' `linear_quantize_weights` makes in its symmetric mode (coremltools
`optimize/_utils.py`, `quantize_weight_by_dtype`), with four differences, all where its float16
arithmetic goes wrong:

- it divides by the scale before it is rounded, and in the weight's float16, so that a quotient near
  a half may go to the farther integer; here the division is in float32, by the stored scale;
- a scale is at least what its weights need: denormals, whose scale it rounds to 0, are kept;
- but the largest integer times the scale is finite: 65504 / 7 rounded up, times 7, would not be;
- a block of zeros has scale 1; there it divides 0 by 0.

So a weight is at most half a scale from scale · data, to which decoding adds the rounding of the
product to float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convert.errors import InputError


@dataclass(frozen=True)
class Quantized:
    """The operands of iOS18's `constexpr_blockwise_shift_scale`.

    With one block they are those of iOS16's `constexpr_affine_dequantize`, too, with axis 0 and
    zero points of 0.

    Attributes:
        data: int8, in the shape of the weight; for 4 bits from -7 to 7, to be packed (`pack`).
        scale: float16 [out, blocks, 1, …], positive, in the rank of the weight.
    """

    data: np.ndarray
    scale: np.ndarray

    def decode(self) -> np.ndarray:
        """float16 in the shape of the weight, bit for bit what either op gives."""
        # The product of float16 and an 8-bit integer is exact in float32: it is rounded once.
        data = _blocks(self.data, self.scale.shape[1]).astype(np.float32)
        data *= self.scale[:, :, None].astype(np.float32)
        return data.astype(np.float16).reshape(self.data.shape)


def int8_per_channel(weight: np.ndarray) -> Quantized:
    """8-bit integers from -127 to 127 with one scale per output channel.

    Args:
        weight: float16 [out, in, …], finite.
    """
    return _symmetric(weight, 1, 127)


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
    scale = _scale(magnitude.astype(np.float32), largest)
    data = np.rint(blocks / scale).astype(np.int8)
    return Quantized(data.reshape(weight.shape), scale[:, :, 0].astype(np.float16))


def _blocks(weight: np.ndarray, count: int) -> np.ndarray:
    """[out, in, …] as [out, blocks, in / blocks, …]."""
    return weight.reshape(len(weight), count, -1, *weight.shape[2:])


def _scale(magnitude: np.ndarray, largest: int) -> np.ndarray:
    """magnitude / largest, float32, as the next float16 value that is not below; 1 instead of 0.

    Where `largest` times that is infinite in float16, it is the next one below: what that cuts off
    of the largest weights is less than a tenth of a scale.
    """
    exact = magnitude / np.float32(largest)
    rounded = exact.astype(np.float16)
    above = np.nextafter(rounded, np.float16(np.inf))
    # Rounded down, it would not span the weights: the largest would be cut off.
    scale = np.where(rounded < exact, above, rounded)
    below = np.nextafter(scale, np.float16(0))
    reach = scale.astype(np.float32) * largest
    scale = np.where(reach > np.finfo(np.float16).max, below, scale)
    return np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
