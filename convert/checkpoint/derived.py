"""Tensors whose values are computed from what files hold: each is a `Tensor` like a stored one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint.tensors import CHUNK_BYTES, StoredTensor, Tensor, finite, gathered
from convert.files.dtypes import FLOATS, WIDTHS, decoded


@dataclass(frozen=True)
class Scaled:
    """A tensor times one number, in float32: a `Tensor`.

    Attributes:
        stored: the codes, of 8-bit floats as a rule.
        scale: a tensor of one element, which is read when the values are.
    """

    stored: Tensor
    scale: Tensor
    dtype = "F32"

    @property
    def name(self) -> str:
        """That of the codes."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the codes."""
        return self.stored.shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stored.size

    @property
    def path(self) -> Path:
        """The file of the codes."""
        return self.stored.path

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of codes and scale."""
        return tuple(dict.fromkeys((*self.stored.files, *self.scale.files)))

    def key(self, digests: Mapping[Path, str]) -> Any:
        """What determines the codes, and the scale."""
        return ["scaled", self.stored.key(digests), self.scale.key(digests)]

    def reshape(self, shape: tuple[int, ...]) -> Scaled:
        """As `Tensor.reshape`."""
        return replace(self, stored=self.stored.reshape(shape))

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """As `Tensor.chunks`."""
        scale = self.scale.read(np.float32).reshape(-1)
        done = 0
        for codes in self.stored.chunks(np.float32):
            with np.errstate(over="ignore", invalid="ignore"):  # `finite` says it with its place
                values = codes * scale
            yield finite(values, dtype, done, self)
            done += len(values)

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """As `Tensor.read`."""
        return gathered(self.chunks(dtype), self.shape, dtype)


@dataclass(frozen=True)
class Strided:
    """A tensor whose elements do not lie in order, such as one that was transposed: a `Tensor`.

    Attributes:
        span: all elements from the first to the last of it, as they lie; they are read at once.
        axes: its own shape.
        strides: elements of `span` from one index to the next along each of `axes`.
        shape: what the elements, in the order of `axes`, are seen as.
    """

    span: StoredTensor
    axes: tuple[int, ...]
    strides: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As in its file."""
        return self.span.name

    @property
    def dtype(self) -> str:
        """As in its file."""
        return self.span.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def path(self) -> Path:
        """The one file."""
        return self.span.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return self.span.files

    def key(self, digests: Mapping[Path, str]) -> Any:
        """What lies where in the file, and in which order it is taken."""
        return ["strided", self.span.key(digests), self.axes, self.strides, self.shape]

    def reshape(self, shape: tuple[int, ...]) -> Strided:
        """As `Tensor.reshape`."""
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return replace(self, shape=shape)

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """As `Tensor.chunks`."""
        span = self.span.codes()
        steps = tuple(step * span.itemsize for step in self.strides)
        ordered = np.lib.stride_tricks.as_strided(span, self.axes, steps, writeable=False)
        flat = ordered.flat  # of the codes, not of the values: an iterator that copies slices
        count = CHUNK_BYTES // max(span.itemsize, 2)
        for done in range(0, self.size, count):
            part = flat[done : min(done + count, self.size)]
            yield finite(decoded(part, self.dtype), dtype, done, self)

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """As `Tensor.read`."""
        return gathered(self.chunks(dtype), self.shape, dtype)


def dtypes_of(tensors: Iterable[Tensor]) -> dict[str, int]:
    """How many tensors are stored as what, the most first: {"F8_E4M3, scaled": 722, "F16": 958}."""
    told = (f"{t.stored.dtype}, scaled" if isinstance(t, Scaled) else t.dtype for t in tensors)
    return dict(Counter(told).most_common())


def rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The rows [start, stop) of a tensor's first axis.

    Of a stored one they are its own bytes, one after another; others are computed up to `stop`.
    """
    name, shape = f"{tensor.name}[{start}:{stop}]", (stop - start, *tensor.shape[1:])
    if isinstance(tensor, StoredTensor) and tensor.dtype in FLOATS:
        before = start * math.prod(tensor.shape[1:]) * WIDTHS[tensor.dtype]
        return replace(tensor, name=name, shape=shape, offset=tensor.offset + before)
    return Rows(tensor, start, stop, shape)


@dataclass(frozen=True)
class _Derived:
    """What tensors that are computed from one other have in common."""

    tensor: Tensor

    @property
    def dtype(self) -> str:
        """That of the other."""
        return self.tensor.dtype

    @property
    def path(self) -> Path:
        """Where the other lies."""
        return self.tensor.path

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the other."""
        return self.tensor.files


@dataclass(frozen=True)
class Rows(_Derived):
    """The rows [start, stop) of a tensor's first axis: a `Tensor`."""

    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The tensor's, and which rows."""
        return f"{self.tensor.name}[{self.start}:{self.stop}]"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def key(self, digests: Mapping[Path, str]) -> Any:
        """As `Tensor.key`."""
        return ["rows", self.tensor.key(digests), self.start, self.stop, self.shape]

    def reshape(self, shape: tuple[int, ...]) -> Rows:
        """As `Tensor.reshape`."""
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return replace(self, shape=shape)

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """As `Tensor.chunks`."""
        width = math.prod(self.tensor.shape[1:])
        begin, end, at = self.start * width, self.stop * width, 0
        for chunk in self.tensor.chunks(dtype):
            part = chunk[max(begin - at, 0) : max(end - at, 0)]
            if len(part):
                yield part
            at += len(chunk)
            if at >= end:
                return

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """As `Tensor.read`."""
        return gathered(self.chunks(dtype), self.shape, dtype)


@dataclass(frozen=True)
class Transposed(_Derived):
    """A matrix, transposed: a `Tensor`. It is read whole, so it should be no large one."""

    own_shape: tuple[int, ...] | None = None  # what it was reshaped to

    @property
    def name(self) -> str:
        """The matrix's."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """As `Tensor.shape`."""
        return self.own_shape or self.tensor.shape[::-1]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tensor.size

    def key(self, digests: Mapping[Path, str]) -> Any:
        """As `Tensor.key`."""
        return ["transposed", self.tensor.key(digests), self.shape]

    def reshape(self, shape: tuple[int, ...]) -> Transposed:
        """As `Tensor.reshape`."""
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return replace(self, own_shape=shape)

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """As `Tensor.chunks`."""
        values = self.read(dtype).reshape(-1)
        count = CHUNK_BYTES // values.itemsize
        for start in range(0, len(values), count):
            yield values[start : start + count]

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """As `Tensor.read`."""
        return np.ascontiguousarray(self.tensor.read(dtype).T).reshape(self.shape)
