"""MIL ops that move elements: reshaping, slicing, joining, padding, filling."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import Empty, fresh, op


@op("reshape", kind="move")
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """-1 is inferred; 0 keeps x's dimension there, counted from the right (1 beyond x's rank).

    Up to iOS16, 0 is allowed only where the rank stays, which is the same thing.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    sizes = [1] * len(shape) + list(x.shape)
    kept = sizes[len(sizes) - len(shape) :]
    return x.reshape([s or d for s, d in zip(shape, kept, strict=True)])


@op("transpose", kind="move")
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    """x with its axes in the order `perm`: axis i of the result is axis perm[i] of x.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    return x.permute(perm)


@op("expand_dims", kind="move")
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """x with axes of length 1 at `axes`, which are counted in the result.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@op("squeeze", kind="move")
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """x without `axes`, each of length 1; without all axes of length 1 if None.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    if axes is None:
        return x.squeeze()
    for axis in axes:
        if x.shape[axis] != 1:
            raise ValueError(f"axis {axis} of {list(x.shape)} cannot be squeezed")
    return x.squeeze(tuple(axes))


@op("identity", kind="move")
def identity(x: Tensor) -> Tensor:
    """x as it is.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return x


@op("concat", kind="move")
def concat(
    values: list[Tensor], axis: int, interleave: bool = False, empty: Empty = fresh
) -> Tensor:
    """Tensors alike but for `axis`, one after the other along it.

    With `interleave` their elements along `axis` take turns: a0, b0, a1, b1, …

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    if not interleave and values[0].dim() and all(v.dtype == values[0].dtype for v in values):
        shape = list(values[0].shape)
        shape[axis] = sum(v.shape[axis] for v in values)
        return torch.cat(values, axis, out=empty(shape, dtype=values[0].dtype))
    if not interleave:
        return torch.cat(values, axis) if values[0].dim() else torch.stack(values)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@op("stack", kind="move")
def stack(values: list[Tensor], axis: int) -> Tensor:
    """N tensors [*D] along a new axis: [*D[:axis], N, *D[axis:]].

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return torch.stack(values, axis)


@op("split", kind="move")
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> tuple[Tensor, ...]:
    """x in pieces along `axis`: `num_splits` equal ones, or of the lengths `split_sizes`.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    if split_sizes is not None:
        return x.split(split_sizes, axis)
    if num_splits is None or x.shape[axis] % num_splits:
        raise ValueError(f"{list(x.shape)} cannot be split into {num_splits} along axis {axis}")
    return x.split(x.shape[axis] // num_splits, axis)


@op("slice_by_index", kind="move")
def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """numpy slicing, as coremltools' `solve_slice_by_index_slice` has it.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    squeezed = [axis for axis in range(x.dim()) if squeeze_mask and squeeze_mask[axis]]
    for axis in range(x.dim()):
        first = None if begin_mask and begin_mask[axis] else begin[axis]
        if axis in squeezed:
            index = 0 if first is None else first
            x = x.narrow(axis, index % x.shape[axis] if index < 0 else index, 1)
            continue
        last = None if end_mask and end_mask[axis] else end[axis]
        step = stride[axis] if stride else 1
        chosen = range(*slice(first, last, step).indices(x.shape[axis]))
        if chosen == range(x.shape[axis]):
            continue
        if step > 0:
            x = x[(slice(None),) * axis + (slice(chosen.start, chosen.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64).to(x.device))
    return x.squeeze(tuple(squeezed)) if squeezed else x


@op("slice_by_size", kind="move")
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """x[begin[0] : begin[0] + size[0], …]; a size of -1 reaches to the end.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first += x.shape[axis] if first < 0 else 0
        x = x.narrow(axis, first, count if count > 0 else x.shape[axis] - first)
    return x


@op("reverse", kind="move")
def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """x back to front along `axes`, or along all.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    return x.flip(tuple(range(x.dim())) if axes is None else tuple(axes))


@op("tile", kind="move")
def tile(x: Tensor, reps: list[int]) -> Tensor:
    """x [*D], repeated reps[i] times along axis i.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return x.tile(reps)


@op("pad", kind="move")
def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`pad` holds (before, after) of the last len(pad)/2 axes, first axis first.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        flat = [n for pair in reversed(pairs) for n in pair]
        return F.pad(x, flat, value=constant_val)
    # torch reflects and replicates only some ranks, MIL any: choose rows axis by axis.
    for axis, (before, after) in enumerate(pairs, start=x.dim() - len(pairs)):
        if not before and not after:
            continue
        size = x.shape[axis]
        rows = torch.arange(-before, size + after)
        if mode == "reflect":
            if max(before, after) >= size:
                raise ValueError(f"cannot reflect {max(before, after)} rows of {size}")
            rows = (size - 1) - ((size - 1) - rows.abs()).abs()
        elif mode == "replicate":
            rows = rows.clamp(0, size - 1)
        else:
            raise ValueError(f"unknown padding mode {mode!r}")
        x = x.index_select(axis, rows.to(x.device))
    return x


@op("shape", kind="move")
def shape(x: Tensor) -> Tensor:
    """The shape of x as int32 [rank].

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return torch.tensor(x.shape, dtype=torch.int32)


@op("fill", kind="move")
def fill(shape: list[int], value: float = 0.0) -> Tensor:
    """A tensor of a shape, all `value`.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return torch.full(shape, value)


@op("fill_like", kind="move")
def fill_like(ref_tensor: Tensor, value: float = 0.0) -> Tensor:
    """A tensor of the shape of `ref_tensor`, all `value`.

    Source: coremltools `ops/defs/iOS16/tensor_operation.py`.
    """
    return torch.full(ref_tensor.shape, value)


@op("range_1d", kind="move")
def range_1d(end: float, start: float, step: float) -> Tensor:
    """start, start + step, … below end: [⌈(end − start) / step⌉].

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return torch.arange(start, end, step)


@op("band_part", kind="move")
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """The last two axes of x within `lower` diagonals below and `upper` above the main; -1 is all.

    All else is 0.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    x = x.triu(-lower) if lower >= 0 else x
    return x.tril(upper) if upper >= 0 else x


@op("flatten2d", kind="move")
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """x [*A, *B] -> [ΠA, ΠB], where B begins at `axis`.

    Source: coremltools `ops/defs/iOS15/tensor_operation.py`.
    """
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("reshape_like", kind="move")
def reshape_like(
    x: Tensor,
    ref_tensors: list[Tensor],
    begins: list[int] | int,
    ends: list[int] | int,
    end_masks: list[bool] | bool,
) -> Tensor:
    """x in the shape that pieces of other shapes make: of each from its begin to its end.

    Where the mask says so a piece goes on to the last axis.

    Source: coremltools `ops/defs/{iOS16,iOS17}/tensor_transformation.py`.
    """
    # A tuple of one is a value by itself.
    pieces = ([v] if isinstance(v, int) else v for v in (begins, ends, end_masks))
    shape: list[int] = []
    for reference, begin, end, mask in zip(ref_tensors, *pieces, strict=True):
        shape += reference.shape[begin : None if mask else end]
    return x.reshape(shape)


@op("sliding_windows", kind="move")
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """x [*A, n, *B] -> [*A, windows, size, *B]: what lies in windows along `axis`.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    axis %= x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


@op("reverse_sequence", kind="move")
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Of each entry along `batch_axis` the first `lengths` along `seq_axis`, back to front.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_transformation.py`.
    """
    rows = x.movedim((batch_axis, seq_axis), (0, 1))
    place = torch.arange(rows.shape[1], device=x.device)
    mirrored = lengths.long()[:, None] - 1 - place
    index = torch.where(mirrored >= 0, mirrored, place).reshape(
        *rows.shape[:2], *[1] * (x.dim() - 2)
    )
    return rows.take_along_dim(index, 1).movedim((0, 1), (batch_axis, seq_axis))
