"""Rows below the token embeddings, by reference: each part is a `Tensor`, and so is the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint.tensors import Tensor, finite, gathered


@dataclass(frozen=True)
class Stacked:
    """Matrices of one width, one below the other: a `Tensor`.

    Attributes:
        parts: in their order, [rows, width] each.
        shape: of the whole, or what it was reshaped to.
    """

    parts: tuple[Tensor, ...]
    shape: tuple[int, ...]

    @staticmethod
    def of(*parts: Tensor) -> Stacked:
        """The matrices, one below the other."""
        return Stacked(parts, (sum(part.shape[0] for part in parts), parts[0].shape[1]))

    @property
    def name(self) -> str:
        """That of the first."""
        return self.parts[0].name

    @property
    def dtype(self) -> str:
        """That of all, or F32 where they differ."""
        dtypes = {part.dtype for part in self.parts}
        return dtypes.pop() if len(dtypes) == 1 else "F32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def path(self) -> Path:
        """That of the first."""
        return self.parts[0].path

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of all."""
        return tuple(dict.fromkeys(file for part in self.parts for file in part.files))

    def key(self, digests: Mapping[Path, str]) -> Any:
        """What determines each of them, in their order."""
        return ["stacked", [part.key(digests) for part in self.parts], self.shape]

    def reshape(self, shape: tuple[int, ...]) -> Stacked:
        """As `Tensor.reshape`."""
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return replace(self, shape=shape)

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """As `Tensor.chunks`; an error tells of the part and its index there."""
        for part in self.parts:
            yield from part.chunks(dtype)

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """As `Tensor.read`."""
        return gathered(self.chunks(dtype), self.shape, dtype)


@dataclass(frozen=True)
class MeanRows:
    """Means of some rows of a table, in float32, rounded once: a `Tensor`.

    Attributes:
        table: [rows, width]; it is read once, and of it only the rows that are needed are kept.
        rows: of each mean, the rows that it is of.
        shape: [means, width], or what it was reshaped to.
    """

    table: Tensor
    rows: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtype = "F32"

    @staticmethod
    def of(table: Tensor, rows: tuple[tuple[int, ...], ...]) -> MeanRows:
        """The means of a table's rows."""
        return MeanRows(table, rows, (len(rows), table.shape[1]))

    @property
    def name(self) -> str:
        """The table's."""
        return self.table.name

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def path(self) -> Path:
        """The table's."""
        return self.table.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The table's."""
        return self.table.files

    def key(self, digests: Mapping[Path, str]) -> Any:
        """The table, and which rows of it."""
        return ["means", self.table.key(digests), self.rows, self.shape]

    def reshape(self, shape: tuple[int, ...]) -> MeanRows:
        """As `Tensor.reshape`."""
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return replace(self, shape=shape)

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """As `Tensor.chunks`."""
        kept = self._needed()
        for number, rows in enumerate(self.rows):
            mean = np.stack([kept[row] for row in rows]).mean(axis=0, dtype=np.float32)
            yield finite(mean, dtype, number * len(mean), self)

    def _needed(self) -> dict[int, np.ndarray]:
        """The rows that some mean is of, float32."""
        width, first = self.table.shape[1], 0
        wanted = sorted({row for rows in self.rows for row in rows})
        kept = {row: np.empty(width, np.float32) for row in wanted}
        for chunk in self.table.chunks(np.float32):
            last = first + len(chunk)
            for row in wanted:
                begin, end = max(first, row * width), min(last, (row + 1) * width)
                if begin < end:
                    kept[row][begin - row * width : end - row * width] = chunk[
                        begin - first : end - first
                    ]
            first = last
        return kept

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """As `Tensor.read`."""
        return gathered(self.chunks(dtype), self.shape, dtype)
