"""MIL ops that pool: one value of each window."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import op
from verify.operations.window import pad_axes, window_pads

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


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
