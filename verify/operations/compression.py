"""Compressed values: integers for activations, and weights, bit for bit as coremltools.

Weights are `constexpr_*`. Where iOS16 and iOS18 give one name to two forms, their inputs tell them
apart.
Source: coremltools `ops/defs/iOS17/quantization_ops.py`, `ops/defs/iOS16/constexpr_ops.py`,
`ops/defs/iOS18/compression.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verify.mil.blob import unpack_bits
from verify.operations.registry import TORCH_DTYPES, op

_CHUNK = 1 << 20  # indices that stay in cache while they are widened for the look-up


def _along(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar as it is, a vector [x.shape[axis]] so that it broadcasts along that axis of x."""
    if parameter.dim() == 0 or axis is None:
        return parameter
    return parameter.reshape([-1 if a == axis % x.dim() else 1 for a in range(x.dim())])


@op("quantize")
def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """round(input / scale) + zero point, halves to even, within what the integers hold."""
    value = (input / _along(scale, input, axis)).round_()
    if zero_point is not None:
        value += _along(zero_point, input, axis)
    bounds = torch.iinfo(TORCH_DTYPES[output_dtype])
    return value.clamp_(bounds.min, bounds.max)


@op("dequantize")
def dequantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """scale · (input − zero point)."""
    value = input.float()  # of integers, so a copy
    if zero_point is not None:
        value.sub_(_along(zero_point, input, axis))
    return value.mul_(_along(scale, input, axis))


def _look_up(table: Tensor, indices: Tensor) -> Tensor:
    """table [n], indices uint8 of any shape -> the indices' shape, in the table's dtype."""
    flat = indices.reshape(-1)
    out = torch.empty(flat.shape, dtype=table.dtype, device=table.device)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        torch.index_select(table, 0, part.int(), out=out[start : start + _CHUNK])
    return out.reshape(indices.shape)


def _unpack(packed: Tensor, bits: int, shape: list[int]) -> Tensor:
    """Packed bits as uint8 of a shape."""
    values = unpack_bits(packed.cpu().numpy(), bits, math.prod(shape))
    return torch.from_numpy(values).to(packed.device).reshape(shape)


def _blocks(x: Tensor, blocks: Tensor) -> tuple[Tensor, list[int]]:
    """x [d0, d1, …] as [b0, d0/b0, b1, d1/b1, …] and the shape that broadcasts `blocks` to it."""
    split, spread = [], []
    for size, count in zip(x.shape, blocks.shape, strict=True):
        if size % count:
            raise ValueError(f"{list(blocks.shape)} blocks do not divide {list(x.shape)}")
        split += [count, size // count]
        spread += [count, 1]
    return x.reshape(split), spread


@op("constexpr_lut_to_dense", kind="move")
def constexpr_lut_to_dense(
    indices: Tensor,
    lut: Tensor,
    shape: list[int] | None = None,
    vector_axis: int | None = None,
) -> Tensor:
    """iOS16: packed indices, lut [2^bits], shape. iOS18: indices [*D], lut [*blocks, 2^bits, V]."""
    if shape is not None:
        return _look_up(lut, _unpack(indices, int(math.log2(lut.numel())), shape))
    count, vector = lut.shape[-2:]
    tables = lut.reshape(-1, count, vector)
    if len(tables) == 1:
        if vector == 1:
            return _look_up(tables.reshape(-1), indices)
        picked = tables[0][indices.long()]
    else:
        # Which table an element uses, from an index tensor in the shape of the tables.
        number = torch.arange(len(tables), device=lut.device).reshape(lut.shape[:-2])
        split, spread = _blocks(indices, number)
        flat = number.reshape(spread) * count + split.long()
        picked = tables.reshape(-1, vector)[flat.reshape(indices.shape)]
    if vector == 1:
        return picked.squeeze(-1)
    if vector_axis is None:
        raise ValueError("a vector palette needs vector_axis")
    axis = vector_axis % indices.dim()
    return picked.movedim(-1, axis + 1).flatten(axis, axis + 1)


@op("constexpr_affine_dequantize", kind="move")
def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int
) -> Tensor:
    """scale · (data − zero_point) in fp32, then rounded to scale's dtype."""
    return dequantize(quantized_data, scale.float(), zero_point, axis).to(scale.dtype)


@op("constexpr_cast", kind="move")
def constexpr_cast(source_val: Tensor, output_dtype: str = "fp32") -> Tensor:
    """A float16 weight as float32, of any shape; the only cast that there is.

    Source: coremltools `ops/defs/iOS16/constexpr_ops.py`.
    """
    if output_dtype != "fp32":
        raise ValueError(f"constexpr_cast to {output_dtype!r}")
    return source_val.float()


@op("constexpr_blockwise_shift_scale", kind="move")
def constexpr_blockwise_shift_scale(
    data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> Tensor:
    """scale · (data − offset) in scale's dtype, one scale and offset per block."""
    split, spread = _blocks(data, scale)
    value = split.to(scale.dtype)
    if offset is not None:
        value = value - offset.reshape(spread)
    return (scale.reshape(spread) * value).reshape(data.shape)


@op("constexpr_sparse_to_dense", kind="move")
def constexpr_sparse_to_dense(
    nonzero_data: Tensor, mask: Tensor, shape: list[int] | None = None
) -> Tensor:
    """iOS16: mask of packed bits and shape. iOS18: mask uint1 [*D]."""
    mask = _unpack(mask, 1, shape) if shape is not None else mask
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype, device=nonzero_data.device)
    dense[mask.bool()] = nonzero_data
    return dense


@op("constexpr_lut_to_sparse", kind="move")
def constexpr_lut_to_sparse(
    indices_mask: Tensor,
    indices_nonzero_data: Tensor,
    lut: Tensor,
    vector_axis: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The mask and the non-zero values, for a `constexpr_sparse_to_dense` that follows."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(indices, lut, vector_axis=vector_axis)
    mask = indices_mask
    if vector_axis is not None:
        mask = mask.repeat_interleave(lut.shape[-1], vector_axis)
    return mask, dense[mask.bool()]


@op("constexpr_sparse_blockwise_shift_scale", kind="move")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the non-zero values, for a `constexpr_sparse_to_dense` that follows."""
    data = constexpr_sparse_to_dense(nonzero_data, data_mask)
    return data_mask, constexpr_blockwise_shift_scale(data, scale, offset)[data_mask.bool()]
