"""MIL ops that take and put elements by their indices."""

from __future__ import annotations

import torch
from torch import Tensor

from verify.operations.registry import op
from verify.operations.shape import slice_by_index

_REDUCE = {"mul": "prod", "max": "amax", "min": "amin"}


def _from_end(indices: Tensor, size: int, validate: bool) -> Tensor:
    """Indices from the start: up to iOS16 they may count from the end.

    From iOS17 on that is an error where it is asked for, and elsewhere anything may come of it.
    """
    indices = indices.long()
    if validate and bool((indices < 0).any()):
        raise IndexError(f"an index below 0, of {size}")
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
    index = _from_end(indices, x.shape[axis], validate_indices)
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
        where.append(_from_end(index, x.shape[axis], validate_indices))
    return x[tuple(where)]


@op("gather_along_axis", kind="move")
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """x [*D], indices of D but for `axis`: along it, each result is x at its index.

    Source: coremltools `ops/defs/{iOS15,iOS16,iOS17}/scatter_gather.py`.
    """
    return x.take_along_dim(_from_end(indices, x.shape[axis], validate_indices), axis)


@op("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """data with `updates` [data.shape[:axis], *indices, data.shape[axis + 1:]] put along `axis`.

    Source: coremltools `ops/defs/{iOS15,iOS17}/scatter_gather.py`.
    """
    return _put(data, gather(_places(data), indices, axis, 0, validate_indices), updates, mode)


@op("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """data with each of `updates` put at its index along `axis`.

    Source: coremltools `ops/defs/{iOS15,iOS17}/scatter_gather.py`.
    """
    return _put(
        data, gather_along_axis(_places(data), indices, axis, validate_indices), updates, mode
    )


@op("scatter_nd")
def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """data with `updates` put where the last axis of `indices` has the coordinates.

    Source: coremltools `ops/defs/{iOS15,iOS17}/scatter_gather.py`.
    """
    return _put(data, gather_nd(_places(data), indices, 0, validate_indices), updates, mode)


@op("slice_update", kind="move")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x with `update` in place of what `slice_by_index` takes of it.

    Source: coremltools `ops/defs/iOS18/tensor_transformation.py`.
    """
    places = slice_by_index(_places(x), begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return _put(x, places, update, "update")


def _places(x: Tensor) -> Tensor:
    """Where each element of x stands among all: what takes from it says where to put."""
    return torch.arange(x.numel(), device=x.device).reshape(x.shape)


def _put(data: Tensor, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """data with `updates` at `places`; several at one place count one after the other."""
    if places.shape != updates.shape:
        raise ValueError(f"updates are {list(updates.shape)}, their places {list(places.shape)}")
    flat, index = data.reshape(-1), places.reshape(-1)
    values = updates.reshape(-1).to(data.dtype)
    if mode == "update":
        result = flat.scatter(0, index, values)
    elif mode in ("add", "sub"):
        result = flat.scatter_add(0, index, values if mode == "add" else -values)
    elif mode == "div":
        result = flat / torch.ones_like(flat).scatter_reduce(0, index, values, "prod")
    elif mode in _REDUCE:
        result = flat.scatter_reduce(0, index, values, _REDUCE[mode])
    else:
        raise ValueError(f"unknown mode {mode!r}")
    return result.reshape(data.shape)


@op("one_hot", kind="move")
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: float = 1,
    off_value: float = 0,
) -> Tensor:
    """Along a new `axis` of length `one_hot_vector_size`: `on_value` at the index, else off.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    places = torch.arange(one_hot_vector_size, device=indices.device)
    hot = (indices.unsqueeze(-1) == places).movedim(-1, axis)
    return torch.where(hot, on_value, off_value)


@op("non_zero", kind="move")
def non_zero(x: Tensor) -> Tensor:
    """The coordinates of what is not 0, in order: [N, rank of x].

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return x.nonzero()
