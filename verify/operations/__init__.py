"""What each of MIL's operations computes, with PyTorch; importing this fills the registry."""

from __future__ import annotations

from verify.operations import (
    activation,
    constexpr,
    elementwise,
    image,
    index,
    linear,
    pooling,
    reduce,
    shape,
)
