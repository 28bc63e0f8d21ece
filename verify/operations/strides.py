"""How a tensor lies in memory: strides that fill it without gaps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def dense_strides(tensor: Tensor) -> tuple[int, ...] | None:
    """The tensor's strides if it fills its span of memory without gaps or overlaps, else None."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return None
            expected *= size
    return tuple(tensor.stride())


def like_strides(tensor: Tensor) -> tuple[int, ...] | None:
    """Strides of a dense tensor with the axes in this one's order; None if some are repeated.

    A slice is not dense, but what is computed from it should lie in memory as it does.
    """
    if 0 in (s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1):
        return None
    strides, expected = list(tensor.stride()), 1
    order = sorted(range(tensor.dim()), key=lambda axis: (strides[axis], tensor.shape[axis]))
    for axis in order:
        strides[axis] = expected
        expected *= tensor.shape[axis]
    return tuple(strides)


def is_laid_out(tensor: Tensor, strides: Sequence[int] | None) -> bool:
    """Whether a tensor has these strides, or is contiguous; axes of length 1 may have any."""
    if strides is None:
        return tensor.is_contiguous()
    axes = zip(tensor.stride(), strides, tensor.shape, strict=True)
    return all(found == wanted for found, wanted, size in axes if size > 1)
