"""MIL ops on images: resizing, cropping, sampling, pixels in other places."""

from __future__ import annotations

import math

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
    height, width = x.shape[-2:]
    size = (math.floor(height * scale_factor_height), math.floor(width * scale_factor_width))
    return resize_nearest_neighbor(x, *size)


@op("resize_nearest_neighbor", kind="move")
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """x [*D, H, W] -> [*D, target height, target width]: row i is row ⌊i · H / target⌋.

    Source: coremltools `ops/defs/iOS15/image_resizing.py`.
    """
    planes = x.reshape(-1, 1, *x.shape[-2:]) if x.dim() != 4 else x
    out = F.interpolate(planes, size=(target_size_height, target_size_width), mode="nearest")
    return out.reshape(*x.shape[:-2], *out.shape[-2:])
