"""Memory of values that are gone, kept for values to come.

A large tensor that torch frees goes back to the system, and the next one is made of fresh pages,
each of which the kernel has to map and to clear at its first touch. For a UNet at 1024×1024 that
takes as long as a third of the matrix products. CUDA and MPS keep freed memory themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verify.operations.strides import dense_strides

SMALLEST = 1 << 20  # bytes: the allocator keeps what is smaller by itself
SLACK = 1.5  # how many times too large a block may be
SPARE = 3 << 30  # bytes that may lie idle: an attention matrix of SDXL in fp32, and its rounding


class Memory:
    """Blocks of CPU memory that nobody uses at the moment.

    Args:
        spare: bytes that may lie idle; what exceeds them is freed, longest idle first.
    """

    def __init__(self, spare: int = SPARE) -> None:
        self.spare = spare
        self.idle = 0  # bytes
        self._blocks: dict[int, torch.UntypedStorage] = {}  # by address, longest idle first

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None
    ) -> Tensor:
        """An uninitialised CPU tensor, contiguous or with the strides of a dense tensor."""
        count = 1
        for size in shape:
            count *= size
        needed = count * dtype.itemsize
        block = self._take(needed) if needed >= SMALLEST else None
        if block is None:
            if strides is None:
                return torch.empty(shape, dtype=dtype)
            return torch.empty_strided(shape, strides, dtype=dtype)
        tensor = torch.empty(0, dtype=dtype)
        if strides is None:
            return tensor.set_(block, 0, shape)  # type: ignore[call-overload]
        return tensor.set_(block, 0, shape, strides)

    def give(self, tensor: Tensor) -> None:
        """Take back the memory behind a tensor, which nobody may read or write any more."""
        block = tensor.untyped_storage()
        size = block.nbytes()
        if size < SMALLEST or tensor.device.type != "cpu" or block.data_ptr() in self._blocks:
            return
        self._blocks[block.data_ptr()] = block
        self.idle += size
        while self.idle > self.spare:
            self.idle -= self._blocks.pop(next(iter(self._blocks))).nbytes()

    def clear(self) -> None:
        """Free all blocks."""
        self._blocks.clear()
        self.idle = 0

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in another dtype, laid out as it is; on other devices than the CPU as well."""
        if tensor.device.type != "cpu" or tensor.numel() * dtype.itemsize < SMALLEST:
            return tensor.to(dtype)
        strides = None if tensor.is_contiguous() else dense_strides(tensor)
        return self.empty(tensor.shape, dtype, strides).copy_(tensor)

    def _take(self, needed: int) -> torch.UntypedStorage | None:
        """The smallest block that is large enough, the latest of equals: it may be in the cache."""
        best = None
        for address, block in reversed(self._blocks.items()):
            size = block.nbytes()
            if needed <= size <= needed * SLACK and (best is None or size < best[0]):
                best = size, address
        if best is None:
            return None
        self.idle -= best[0]
        return self._blocks.pop(best[1])
