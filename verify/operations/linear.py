"""MIL ops that multiply and accumulate: convolution, matrix products, attention."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.pooling import pad_axes, window_pads
from verify.operations.registry import Empty, fresh, op

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _alike(first: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Tensors in the dtype that holds the values of all: from iOS17 on constants may differ."""
    dtype = first.dtype
    for tensor in others:
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return tuple(None if t is None else t.to(dtype) for t in (first, *others))


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
    empty: Empty = fresh,
) -> Tensor:
    """x [N, C, *D], weight [O, C / groups, *K] -> [N, O, *D'].

    Source: coremltools `ops/defs/{iOS15,iOS17}/conv.py`.
    """
    x, weight, bias = _alike(x, weight, bias)
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pairs = window_pads(pad_type, pad, list(x.shape[2:]), kernel, strides)
    pointwise = all(k == 1 for k in kernel) and all(s == 1 for s in strides)
    if pointwise and groups == 1 and not any(map(any, pairs)):
        return _pointwise(x, weight, bias, empty)
    if all(before == after for before, after in pairs):
        padding = [before for before, _ in pairs]
    else:
        x, padding = pad_axes(x, pairs), [0] * rank
    return _CONV[rank](x, weight, bias, strides, padding, dilations, groups)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, empty: Empty) -> Tensor:
    """A 1×1 convolution as a matrix product: up to twice as fast as oneDNN's on a CPU.

    The result of a sequence, [N, C, 1, S], has its channels innermost in memory: the product is
    some percent faster so, attention reads rows of channels, and norms add along them. Of an image
    the columns are innermost, as its convolutions leave them.
    """
    batch, channels = x.shape[:2]
    columns, rows = x.reshape(batch, channels, -1), weight.reshape(1, weight.shape[0], channels)
    rows = rows.expand(batch, -1, -1)
    shape = (batch, rows.shape[1], columns.shape[2])
    is_sequence = x.dim() == 4 and x.shape[2] == 1
    if is_sequence:
        shape = (batch, shape[2], shape[1])
        columns, rows = rows.mT, columns.mT
    out = empty(shape, dtype=x.dtype)
    if bias is None:
        torch.bmm(rows, columns, out=out)
    else:
        torch.baddbmm(bias if is_sequence else bias[:, None], rows, columns, out=out)
    return (out.mT if is_sequence else out).reshape(batch, -1, *x.shape[2:])


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """x [N, C, *D], weight [C, O / groups, *K]: the whole result, then what `pad` leaves of it.

    Source: coremltools `ops/defs/{iOS15,iOS17}/conv.py`.
    """
    x, weight, bias = _alike(x, weight, bias)
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    begins, sizes, extra = [], [], []
    for axis, (n, k, s) in enumerate(zip(x.shape[2:], kernel, strides, strict=True)):
        full = (n - 1) * s + k
        before = after = 0
        if pad_type == "custom" and pad:
            before, after = pad[2 * axis], pad[2 * axis + 1]
        elif pad_type in ("same", "same_lower"):
            total = max(0, full - n * s)
            before = total // 2 if pad_type == "same" else total - total // 2
            after = full - n * s - before
        size = output_shape[axis + 2] if output_shape else full - before - after
        begins.append(before)
        sizes.append(size)
        extra.append(max(0, before + size - full))
    out = _CONV_TRANSPOSE[rank](
        x, weight, bias, strides, 0, extra, groups=groups, dilation=dilations
    )
    for axis, (begin, size) in enumerate(zip(begins, sizes, strict=True), start=2):
        out = out.narrow(axis, begin, size)
    return out


@op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [*D, I], weight [O, I], bias [O] -> [*D, O]: x · weightᵀ + bias.

    Source: coremltools `ops/defs/{iOS15,iOS17}/linear.py`.
    """
    return F.linear(*_alike(x, weight, bias))


@op("matmul")
def matmul(
    x: Tensor,
    y: Tensor,
    transpose_x: bool = False,
    transpose_y: bool = False,
    empty: Empty = fresh,
) -> Tensor:
    """x [*B, M, K], y [*B, K, N] -> [*B, M, N], with B broadcast; a transpose swaps the last axes.

    Source: coremltools `ops/defs/{iOS15,iOS17}/linear.py`.
    """
    x, y = _alike(x, y)
    x, y = x.mT if transpose_x else x, y.mT if transpose_y else y
    if x.shape[:-2] != y.shape[:-2] or x.dim() < 3:
        return torch.matmul(x, y)
    out = empty((*x.shape[:-1], y.shape[-1]), dtype=x.dtype)
    return torch.matmul(x, y, out=out)


_BC1S = re.compile(r"(\w)(\w)(\w)(\w),\1(\w)\3(\w)->\1\2\3\6")


@op("einsum")
def einsum(values: list[Tensor], equation: str, empty: Empty = fresh) -> Tensor:
    """Sums over the letters of `equation` that its result lacks; two tensors.

    The attention of split_einsum, nchw,nwhu->nchu with h = 1, is one batched matrix product.

    Source: coremltools `ops/defs/iOS15/linear.py`.
    """
    first, *rest = values
    if (
        is_bc1s(equation)
        and first.dim() == rest[0].dim() == 4
        and first.shape[2] == rest[0].shape[2] == 1
        and first.shape[0] == rest[0].shape[0]
    ):
        return _bc1s(first.squeeze(2), rest[0].squeeze(2), empty).unsqueeze(2)
    return torch.einsum(equation.replace(" ", ""), *values)


def is_bc1s(equation: str) -> bool:
    """Whether an einsum is nchw,nwhu->nchu by whatever letters."""
    match = _BC1S.fullmatch(equation.replace(" ", ""))
    return match is not None and match[4] == match[5] and len({*match.groups()}) == 5


def _bc1s(x: Tensor, y: Tensor, empty: Empty) -> Tensor:
    """split_einsum's attention, nchw,nwhu->nchu with h = 1: x [N, C, W], y [N, W, U] → [N, C, U].

    Where the sum is short the result is attention weights, whose softmax goes over C; then C is
    the innermost axis in memory, along which torch's softmax is several times faster.
    """
    batch, rows, length = x.shape
    columns = y.shape[2]
    if length < min(rows, columns):
        out = empty((batch, columns, rows), dtype=x.dtype)
        return torch.bmm(y.mT, x.mT, out=out).mT
    return torch.bmm(x, y, out=empty((batch, rows, columns), dtype=x.dtype))


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """query [*B, T, E], key [*B, S, E], value [*B, S, V] -> [*B, T, V].

    softmax(query keyᵀ / √E + mask) value; a boolean mask [*B, T, S] says which keys take part.

    Source: coremltools `ops/defs/iOS18/transformers.py`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
