"""A tensor that no file holds, for tests of what takes tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint.tensors import Tensor, finite, gathered


@dataclass(frozen=True)
class Sum:
    """The sum of two tensors of one dtype and size, computed in float32: a `Tensor`."""

    one: Tensor
    other: Tensor
    shape: tuple[int, ...]
    dtype = "F32"

    @property
    def name(self) -> str:
        return self.one.name

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def path(self) -> Path:
        return self.one.path

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.one.files, *self.other.files)

    def key(self, digests: Mapping[Path, str]) -> Any:
        return ["sum", self.one.key(digests), self.other.key(digests), self.shape]

    def reshape(self, shape: tuple[int, ...]) -> Sum:
        return replace(self, shape=shape)

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        start = 0
        pairs = zip(self.one.chunks(np.float32), self.other.chunks(np.float32), strict=True)
        for one, other in pairs:
            yield finite(one + other, dtype, start, self)
            start += len(one)

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        return gathered(self.chunks(dtype), self.shape, dtype)


def half_steps(one: np.ndarray, other: np.ndarray) -> int:
    """The most float16 values that lie between two of the same place, +1; 0 if all are equal."""
    assert one.dtype == other.dtype == np.float16
    assert one.shape == other.shape

    def ranks(values: np.ndarray) -> np.ndarray:
        codes = values.view(np.int16).astype(np.int32)
        return np.where(codes < 0, -(codes & 0x7FFF), codes)

    return int(np.abs(ranks(one) - ranks(other)).max(initial=0))
