"""MIL ops that take and put elements by their indices."""

from __future__ import annotations

import torch
from torch import Tensor

from verify.operations.registry import op


def _from_end(indices: Tensor, size: int) -> Tensor:
    # Allowed up to iOS16 and out of bounds from iOS17 on, where any answer is as good.
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@op("gather", kind="move")
def gather(
    x: Tensor,
    indices: Tensor,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """Result of shape x[:axis] + indices[batch_dims:] + x[axis+1:]; always validated here.

    Source: coremltools `ops/defs/{iOS15,iOS16,iOS17}/scatter_gather.py`.
    """
    axis %= x.dim()
    shape = (*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :])
    index = _from_end(indices, x.shape[axis])
    if batch_dims == 0:
        return x.index_select(axis, index.reshape(-1)).reshape(shape)
    rows = x.flatten(0, batch_dims - 1)
    index = index.reshape(rows.shape[0], -1)
    picked = [row.index_select(axis - batch_dims, i) for row, i in zip(rows, index, strict=True)]
    return torch.stack(picked).reshape(shape)


@op("gather_nd", kind="move")
def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """The last axis of `indices` holds coordinates into x's axes after the batch axes.

    Source: coremltools `ops/defs/{iOS15,iOS16,iOS17}/scatter_gather.py`.
    """
    lead = indices.shape[:-1]
    where = []
    for axis in range(batch_dims):
        count = torch.arange(x.shape[axis], device=x.device)
        where.append(count.reshape([-1 if d == axis else 1 for d in range(len(lead))]))
    for axis, index in enumerate(indices.unbind(-1), start=batch_dims):
        where.append(_from_end(index, x.shape[axis]))
    return x[tuple(where)]


@op("gather_along_axis", kind="move")
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """x [*D], indices of D but for `axis`: along it, each result is x at its index.

    Source: coremltools `ops/defs/{iOS15,iOS16,iOS17}/scatter_gather.py`.
    """
    return x.take_along_dim(_from_end(indices, x.shape[axis]), axis)
