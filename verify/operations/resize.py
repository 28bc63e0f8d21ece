"""MIL ops that make images of another size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import op


@op("upsample_nearest_neighbor", kind="move")
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """x [*D, H, W] -> [*D, ⌊H · scale⌋, ⌊W · scale⌋], each value its nearest neighbour.

    Source: coremltools `ops/defs/iOS15/image_resizing.py`.
    """
    return resize_nearest_neighbor(x, *_scaled(x, scale_factor_height, scale_factor_width))


@op("resize_nearest_neighbor", kind="move")
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """x [*D, H, W] -> [*D, target height, target width]: row i is row ⌊i · H / target⌋.

    Source: coremltools `ops/defs/iOS15/image_resizing.py`.
    """
    planes = x.reshape(-1, 1, *x.shape[-2:]) if x.dim() != 4 else x
    out = F.interpolate(planes, size=(target_size_height, target_size_width), mode="nearest")
    return out.reshape(*x.shape[:-2], *out.shape[-2:])


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """x [*D, H, W] -> [*D, ⌊H · scale⌋, ⌊W · scale⌋], between its four neighbours.

    The scale is that of the sizes, whatever was rounded off.

    Source: coremltools `ops/defs/{iOS15,iOS16}/image_resizing.py`.
    """
    if half_pixel_centers is None:
        half_pixel_centers = not align_corners
    if align_corners and half_pixel_centers:
        raise ValueError("align_corners and half_pixel_centers exclude each other")
    plain = "UNALIGN_CORNERS" if half_pixel_centers else "DEFAULT"
    size = _scaled(x, scale_factor_height, scale_factor_width)
    return _interpolated(x, size, "STRICT_ALIGN_CORNERS" if align_corners else plain)


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """x [*D, H, W] -> [*D, target height, target width], between its four neighbours.

    Source: coremltools `ops/defs/iOS15/image_resizing.py`.
    """
    return _interpolated(x, (target_size_height, target_size_width), sampling_mode)


@op("resize")
def resize(
    x: Tensor,
    shape: list[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """x with its last `resized_dims` axes as long as the end of `shape` says; 0 leaves one alone.

    Source: coremltools `ops/defs/iOS17/image_resizing.py`.
    """
    wanted = shape[len(shape) - resized_dims :]
    size = [n or x.shape[axis - resized_dims] for axis, n in enumerate(wanted)]
    if interpolation_mode == "LINEAR":
        return _interpolated(x, size, sampling_mode)
    if interpolation_mode != "NEAREST_NEIGHBOR":
        raise ValueError(f"unknown interpolation mode {interpolation_mode!r}")
    for axis, count in enumerate(size, start=-resized_dims):
        points = grid_points(x.shape[axis] - 1, count, sampling_mode)
        if any(point % 1 == 0.5 for point in points):
            raise ValueError("which of two neighbours is taken half way is not documented")
        x = x.index_select(axis, torch.tensor([round(p) for p in points], device=x.device))
    return x


def _scaled(x: Tensor, height: float, width: float) -> tuple[int, int]:
    return math.floor(x.shape[-2] * height), math.floor(x.shape[-1] * width)


def grid_points(last: float, count: int, mode: str) -> list[float]:
    """Where to sample an interval [0, last] `count` times.

    Source: coremltools `ops/defs/iOS15/image_resizing.py`, `resize_bilinear`.
    """
    length = last + 1
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        start, spacing = 0.0, last / max(count - 1, 1)
        if count == 1 and mode == "ALIGN_CORNERS":
            start = last / 2
    elif mode == "DEFAULT":
        start, spacing = 0.0, length / count
    elif mode == "OFFSET_CORNERS":
        spacing = max(1, last) / count
        start = 0.5 * spacing
    elif mode == "UNALIGN_CORNERS":
        spacing = length / count
        start = 0.5 * spacing - 0.5
    else:
        raise ValueError(f"unknown sampling mode {mode!r}")
    return [min(last, max(0.0, start + i * spacing)) for i in range(count)]


def _interpolated(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """x with its last axes as long as `size` says, linear between neighbours."""
    value = x.float()
    for axis, count in enumerate(size, start=-len(size)):
        length = x.shape[axis]
        points = torch.tensor(grid_points(length - 1, count, mode), dtype=torch.float64)
        low = points.floor().long().to(x.device)
        weight = (points.to(x.device) - low).float()
        weight = weight.reshape(-1, *[1] * (-1 - axis))
        first = value.index_select(axis, low)
        second = value.index_select(axis, (low + 1).clamp_max_(length - 1))
        value = torch.lerp(first, second, weight)
    return value
