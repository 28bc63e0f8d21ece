"""MIL ops that pool: one value of each window; what is put around an input that has windows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import op

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def window_pads(
    pad_type: str, pad: list[int] | None, size: list[int], kernel: list[int], strides: list[int]
) -> list[tuple[int, int]]:
    """(before, after) per spatial axis; `kernel` is dilated already.

    Source: coremltools `ops/defs/_utils.py`, `aggregated_pad`. An odd total has its extra row at
    the end for `same` and at the start for `same_lower`.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(size)
    if pad_type == "custom":
        pad = pad or [0] * 2 * len(size)
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"unknown pad_type {pad_type!r}")
    pairs = []
    for n, k, s in zip(size, kernel, strides, strict=True):
        total = max(0, -(-n // s) * s - n + k - s)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if pad_type == "same" else (large, small))
    return pairs


def pad_axes(x: Tensor, pairs: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """x with (before, after) more of `value` along each of its last axes."""
    return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=value)


@op("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str = "valid",
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """x [N, C, *D] -> [N, C, *D']: the largest value of each window; padding never is.

    Source: coremltools `ops/defs/iOS15/pool.py`.
    """
    rank = x.dim() - 2
    strides = strides or [1] * rank
    pairs = window_pads(pad_type, pad, list(x.shape[2:]), kernel_sizes, strides)
    if ceil_mode:
        return _MAX_POOL[rank](
            x, kernel_sizes, strides, [before for before, _ in pairs], ceil_mode=True
        )
    return _MAX_POOL[rank](pad_axes(x, pairs, float("-inf")), kernel_sizes, strides)


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str = "valid",
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """x [N, C, *D] -> [N, C, *D']: the mean of each window, padding counted as 0 or left out.

    Source: coremltools `ops/defs/iOS15/pool.py`.
    """
    rank = x.dim() - 2
    strides = strides or [1] * rank
    pairs = window_pads(pad_type, pad, list(x.shape[2:]), kernel_sizes, strides)
    pool = _AVG_POOL[rank]
    if ceil_mode:
        padding = [before for before, _ in pairs]
        return pool(x, kernel_sizes, strides, padding, True, not exclude_padding_from_average)
    mean = pool(pad_axes(x, pairs), kernel_sizes, strides)
    if exclude_padding_from_average:
        mean /= pool(pad_axes(torch.ones_like(x[:1, :1]), pairs), kernel_sizes, strides)
    return mean


@op("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str = "valid",
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """x [N, C, *D] -> [N, C, *D']: √ Σ x² of each window.

    Source: coremltools `ops/defs/iOS15/pool.py`.
    """
    strides = strides or [1] * len(kernel_sizes)
    pairs = window_pads(pad_type, pad, list(x.shape[2:]), kernel_sizes, strides)
    squares = pad_axes(x.square(), pairs)
    if x.dim() == 3:  # the mean of one axis takes no other divisor than its window
        squares, kernel_sizes, strides = squares.unsqueeze(2), [1, *kernel_sizes], [1, *strides]
    total = F.avg_pool2d(squares, kernel_sizes, strides, 0, ceil_mode, divisor_override=1)
    return (total.squeeze(2) if x.dim() == 3 else total).sqrt_()
