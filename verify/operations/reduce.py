"""MIL ops over axes: reductions, sorting, softmax and the normalizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import Empty, fresh, op
from verify.operations.strides import like_strides


def _logsum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep).log_()


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


# Source: coremltools `ops/defs/iOS15/reduction.py`. Over some axes, which stay as 1 if `keep`.
_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _prod,
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt_(),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "reduce_log_sum": _logsum,
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}

for _type, _function in _REDUCTIONS.items():

    def _reduce(
        x: Tensor,
        axes: list[int] | None = None,
        keep_dims: bool = False,
        *,
        _function: Any = _function,
    ) -> Tensor:
        return _function(x, tuple(range(x.dim())) if axes is None else tuple(axes), keep_dims)

    op(_type)(_reduce)


@op("reduce_argmax")
def reduce_argmax(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Where x is largest along `axis`, which stays as 1 with `keep_dims`; int32 as declared.

    Source: coremltools `ops/defs/{iOS15,iOS17}/reduction.py`.
    """
    return x.argmax(axis, keepdim=keep_dims)


@op("reduce_argmin")
def reduce_argmin(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Where x is smallest along `axis`, which stays as 1 with `keep_dims`; int32 as declared.

    Source: coremltools `ops/defs/{iOS15,iOS17}/reduction.py`.
    """
    return x.argmin(axis, keepdim=keep_dims)


@op("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Sums of x up to each place along `axis`, without its own value if `exclusive`.

    `reverse` sums from the end.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis)
    if exclusive:
        first = torch.zeros_like(total.narrow(axis, 0, 1))
        total = torch.cat([first, total.narrow(axis, 0, total.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


@op("argsort")
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The order along `axis` that sorts x, largest first unless `ascending`; equals keep theirs.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return x.argsort(dim=axis, descending=not ascending, stable=True)


@op("topk")
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The k largest, or smallest if ascending; among equals the first; k = -1 takes all.

    Source: coremltools `ops/defs/{iOS15,iOS16,iOS17}/tensor_operation.py`.
    """
    values, indices = x.sort(dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return (values, indices) if return_indices else values


@op("softmax", kind="map")
def softmax(x: Tensor, axis: int = -1, out: Tensor | None = None) -> Tensor:
    """eˣ / Σ eˣ along `axis`, of any shape.

    Source: coremltools `ops/defs/iOS15/activation.py`.
    """
    rows = x.movedim(axis, -1)
    if rows.is_contiguous():  # wherever the axis stands, it is the innermost in memory
        out = None if out is None else _in_place(out.movedim(axis, -1))
        if out is not None and not out.is_contiguous():
            out = None
        return torch.softmax(rows, -1, out=out).movedim(-1, axis)
    if x.dtype == torch.float16:
        # torch accumulates the last axis of fp16 in fp32 and rounds once, but rounds more than
        # once along any other axis.
        wide = x.float()
        return torch.softmax(wide, axis, out=_in_place(wide)).half()
    return torch.softmax(x, axis, out=None if out is None else _in_place(out))


def _in_place(x: Tensor) -> Tensor | None:
    # torch's CPU kernel reads each row before it writes it; other devices promise nothing.
    return x if x.device.type == "cpu" else None


@op("layer_norm")
def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
    empty: Empty = fresh,
) -> Tensor:
    """gamma · (x − mean) / sqrt(variance + epsilon) + beta; gamma has the shape x.shape[axes].

    Source: coremltools `ops/defs/{iOS15,iOS17}/normalization.py`.
    """
    over = list(range(x.dim())) if axes is None else sorted(a % x.dim() for a in axes)
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    out = empty(x.shape, dtype=x.dtype, strides=like_strides(x))
    x = torch.sub(x, x.mean(over, keepdim=True), out=out)
    variance = torch.linalg.vector_norm(x, dim=over, keepdim=True).square_()
    count = 1
    for axis in over:
        count *= x.shape[axis]
    x.div_(variance.div_(count).add_(epsilon).sqrt_())
    return _affine(
        x,
        None if gamma is None else gamma.reshape(shape),
        None if beta is None else beta.reshape(shape),
    )


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
    out: Tensor | None = None,
) -> Tensor:
    """x [N, C, *D]: gamma · (x − mean) / √(variance + epsilon) + beta, each given as [C].

    Source: coremltools `ops/defs/{iOS15,iOS17}/normalization.py`.
    """
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (variance + epsilon).sqrt_().reciprocal_()
    scale = scale if gamma is None else scale * gamma
    if mean.any():
        x = torch.sub(x, mean.reshape(shape), out=out)
    if beta is None:
        return torch.mul(x, scale.reshape(shape), out=out)
    return torch.addcmul(beta.reshape(shape), x, scale.reshape(shape), out=out)


@op("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """x [N, C, *D], gamma and beta [C]: of each sample and channel, over all of D.

    gamma · (x − mean) / √(variance + epsilon) + beta.

    Source: coremltools `ops/defs/{iOS15,iOS17}/normalization.py`.
    """
    over = tuple(range(2, x.dim()))
    shape = (1, -1, *[1] * (x.dim() - 2))
    x = x - x.mean(over, keepdim=True)
    x = x.div_(x.square().mean(over, keepdim=True).add_(epsilon).sqrt_())
    return _affine(
        x,
        None if gamma is None else gamma.reshape(shape),
        None if beta is None else beta.reshape(shape),
    )


@op("local_response_norm")
def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x [N, C, *D] / (k + alpha / size · Σ x²)^beta, summed over `size` neighbouring channels.

    Source: coremltools `ops/defs/{iOS15,iOS17}/normalization.py`.
    """
    return F.local_response_norm(x, size, alpha, beta, k)


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(sum of squares over the last three axes + epsilon).

    Source: coremltools `ops/defs/{iOS15,iOS17}/normalization.py`.
    """
    return x / x.square().sum((-3, -2, -1), keepdim=True).add_(epsilon).sqrt_()


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    # x is this module's own tensor. One pass where there would be two.
    if gamma is None:
        return x if beta is None else x.add_(beta)
    return x.mul_(gamma) if beta is None else torch.addcmul(beta, x, gamma, out=x)
