"""What each of MIL's operations computes, with PyTorch; importing this fills the registry."""

from __future__ import annotations

from verify.operations import (
    activation,
    boxes,
    compression,
    elementwise,
    index,
    linear,
    pixels,
    pooling,
    recurrent,
    reduce,
    resize,
    sampling,
    shape,
)
