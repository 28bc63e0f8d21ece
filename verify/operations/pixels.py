"""MIL ops that exchange the places of pixels with channels, or with the batch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import op
from verify.operations.sampling import crop
from verify.operations.shape import pad


@op("pixel_shuffle", kind="move")
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """x [N, C · f², H, W] -> [N, C, H · f, W · f].

    Source: coremltools `ops/defs/iOS15/tensor_transformation.py`.
    """
    return F.pixel_shuffle(x, upscale_factor)


@op("pixel_unshuffle", kind="move")
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """x [N, C, H · f, W · f] -> [N, C · f², H, W].

    Source: coremltools `ops/defs/iOS16/tensor_transformation.py`.
    """
    return F.pixel_unshuffle(x, downscale_factor)


@op("depth_to_space", kind="move")
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """x [N, b² · C, H, W] -> [N, C, H · b, W · b]; in the channels the place comes first.

    Source: coremltools `ops/defs/iOS15/tensor_transformation.py`.
    """
    return pixel_shuffle(_exchanged(x, block_size**2, -1), block_size)


@op("space_to_depth", kind="move")
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """x [N, C, H · b, W · b] -> [N, b² · C, H, W]; in the channels the place comes first.

    Source: coremltools `ops/defs/iOS15/tensor_transformation.py`.
    """
    return _exchanged(pixel_unshuffle(x, block_size), -1, block_size**2)


def _exchanged(x: Tensor, first: int, second: int) -> Tensor:
    """Channels [first · second] as [second · first]."""
    return x.unflatten(1, (first, second)).transpose(1, 2).flatten(1, 2)


@op("space_to_batch", kind="move")
def space_to_batch(x: Tensor, block_shape: list[int], paddings: list[list[int]]) -> Tensor:
    """x [N, C, H, W], padded by zeros -> [b · b' · N, C, H / b, W / b']; the place comes first.

    Source: coremltools `ops/defs/iOS15/tensor_transformation.py`.
    """
    x = pad(x, [n for pair in paddings for n in pair])
    (down, right), (batch, channels, height, width) = block_shape, x.shape
    split = x.reshape(batch, channels, height // down, down, width // right, right)
    return split.permute(3, 5, 0, 1, 2, 4).reshape(-1, channels, height // down, width // right)


@op("batch_to_space", kind="move")
def batch_to_space(x: Tensor, block_shape: list[int], crops: list[list[int]]) -> Tensor:
    """x [b · b' · N, C, H, W] -> [N, C, H · b, W · b'], cropped; the place comes first.

    Source: coremltools `ops/defs/iOS15/tensor_transformation.py`.
    """
    (down, right), (_, channels, height, width) = block_shape, x.shape
    split = x.reshape(down, right, -1, channels, height, width).permute(2, 3, 4, 0, 5, 1)
    return crop(split.reshape(-1, channels, height * down, width * right), *crops)
