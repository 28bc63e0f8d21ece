"""Weights with LoRAs merged into them, computed as they are read: `MergedTensor`.

All that changes a weight is applied in order to blocks of its rows in float32, and rounded once,
when the reader's dtype is known. So memory is that of a few blocks and of the LoRAs' own matrices,
and whatever reads a checkpoint's tensors, palettes too, meets merged values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint.tensors import Tensor, finite, gathered
from convert.errors import InputError
from convert.lora.adapter import LoraAdapter, columns
from convert.lora.formulas import Add, Decompose, LowRank, Operation, RowReader
from convert.lora.kinds import load
from convert.process.threads import ahead, one_blas_thread

BLOCK = 1 << 18  # elements: block, product and result stay in a core's cache
ROWS = 64  # of a block at least: a product of fewer takes up to three times as long for each value


@dataclass(frozen=True)
class LoraChange:
    """A LoRA's change of one tensor, with the strength that the user gave it."""

    adapter: LoraAdapter
    strength: float

    def key(self, digests: Mapping[Path, str]) -> Any:
        """What determines it, as JSON; see `Tensor.key`."""
        return [self.strength, self.adapter.key(digests)]


@dataclass(frozen=True)
class MergedTensor:
    """A tensor and what LoRAs change in it, in order: a `Tensor`."""

    base: Tensor
    changes: tuple[LoraChange, ...]
    shape: tuple[int, ...]
    dtype = "F32"

    @property
    def name(self) -> str:
        """The base's."""
        return self.base.name

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def path(self) -> Path:
        """The base's."""
        return self.base.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The base's, and the LoRAs'."""
        tensors = [t for change in self.changes for t in change.adapter.tensors.values()]
        files = [file for tensor in tensors for file in tensor.files]
        return tuple(dict.fromkeys((*self.base.files, *files)))

    def key(self, digests: Mapping[Path, str]) -> Any:
        """The base's, with the changes and their strengths."""
        changes = [change.key(digests) for change in self.changes]
        return ["merged", self.base.key(digests), changes, self.shape]

    def reshape(self, shape: tuple[int, ...]) -> MergedTensor:
        """The same elements under another shape; raises ValueError if their number differs."""
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return replace(self, shape=shape)

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """As `Tensor.chunks`; an error says which LoRAs and modules were merged."""
        return ahead(self._chunks(np.dtype(dtype)))

    def _chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        start = 0
        for block in self._blocks(self.changes):
            values = block.reshape(-1)
            try:
                cast = finite(values, dtype, start, self)
            except InputError as error:
                raise self._not_finite(error) from None
            yield cast.copy() if cast.base is not None else cast  # the block's memory is used again
            start += values.size

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """As `Tensor.read`."""
        return gathered(self.chunks(dtype), self.shape, dtype)

    def _blocks(self, changes: Sequence[LoraChange]) -> Iterator[np.ndarray]:
        """The weight after some of the changes, in blocks of rows, [n, columns] float32."""
        operations = self._operations(changes)
        rows, width = self.base.shape[0], columns(self.base.shape)
        step = math.lcm(*(operation.rows for operation in operations))
        step *= max(1, max(BLOCK // width, ROWS) // step)
        reader = RowReader(self.base, width)
        for start in range(0, rows, step):
            block = reader.read(min(step, rows - start))
            with _quiet(), one_blas_thread():
                for operation in operations:
                    block = operation(block, start)
            yield block

    def _operations(self, changes: Sequence[LoraChange]) -> list[Operation]:
        """The changes, with their matrices read; sums of neighbours that are only added."""
        found: list[Operation] = []
        for number, change in enumerate(changes):
            with _quiet(), one_blas_thread():
                operation = load(change.adapter, self.base.shape, change.strength)
            if isinstance(operation, Decompose) and not operation.is_of_outputs:
                operation.norms = self._norms(operation, changes[:number])
            match found[-1:], operation:
                case [Add(LowRank() as last)], Add(LowRank() as delta):
                    found[-1] = Add(last.joined(delta))
                case _:
                    found.append(operation)
        return found

    def _norms(self, decompose: Decompose, before: Sequence[LoraChange]) -> np.ndarray:
        """The norms of V's inputs, by a pass of its own over the weight."""
        squares: Any = 0.0
        start = 0
        for block in self._blocks(before):
            with _quiet(), one_blas_thread():
                squares = squares + decompose.squares(block, start)
            start += len(block)
        norms: np.ndarray = np.sqrt(squares).astype(np.float32)
        return norms

    def _not_finite(self, error: InputError) -> InputError:
        merged = ", ".join(f"{c.adapter.path.name} (`{c.adapter.module}`)" for c in self.changes)
        problem = error.problem.removesuffix(": not a finite number")
        return InputError(
            f"merged with {merged}, {problem}",
            where=self.changes[-1].adapter.path,
            hint="The strength is too high, or the LoRA is damaged or made for another checkpoint.",
        )


def _quiet() -> np.errstate:
    """Overflows pass: they are said of the result, with their place."""
    return np.errstate(over="ignore", invalid="ignore")
