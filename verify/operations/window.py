"""What convolution and pooling put around their input."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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
