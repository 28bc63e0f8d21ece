"""weight.bin: the constants of an ML Program in coremltools' blob format, written by streaming.

Format (coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp): a header of 64 bytes, then for
every blob a record of 64 bytes and its data, each at a multiple of 64 bytes.

The order is canonical: the checkpoint's tensors by name, then our own constants. So one checkpoint
at one precision has one weight file, whatever the resolution and the attention implementation.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from convert.files.cache import key_of
from convert.process.progress import Advance, silent

ALIGNMENT = 64
SENTINEL = 0xDEADBEEF
VERSION = 2
DTYPE_CODES = {
    np.dtype(np.float16): 1,
    np.dtype(np.float32): 2,
    np.dtype(np.uint8): 3,
    np.dtype(np.int8): 4,
}
# Elements narrower than a byte: signedness and bits.
PACKED = {
    (np.dtype(np.int8), 4): 8,
    (np.dtype(np.uint8), 1): 9,
    (np.dtype(np.uint8), 2): 10,
    (np.dtype(np.uint8), 4): 11,
    (np.dtype(np.uint8), 3): 12,
    (np.dtype(np.uint8), 6): 13,
}


class Chunked(Protocol):
    """Where the values of a blob come from."""

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        """The elements in order, as flat arrays; each is valid until the next is asked for."""


@dataclass(frozen=True)
class Value:
    """A small value of our own."""

    array: np.ndarray

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        """The array in one piece."""
        return iter([self.array.reshape(-1).astype(dtype, copy=False)])


@dataclass(frozen=True)
class Blob:
    """One constant of the weight file."""

    name: str  # of the `const` op
    dtype: np.dtype
    shape: tuple[int, ...]
    source: Chunked
    tensor: str | None  # what of the checkpoint it comes from, or None
    packed: int | None = None  # bits of an element where it is narrower than a byte

    @property
    def bits(self) -> int:
        """Bits of all elements, without the padding of the last byte."""
        return math.prod(self.shape) * (self.packed or 8 * self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return -(-self.bits // 8)

    @property
    def code(self) -> int:
        """The dtype's number in the blob's record."""
        return DTYPE_CODES[self.dtype] if self.packed is None else PACKED[self.dtype, self.packed]

    @property
    def order(self) -> tuple[bool, str, str]:
        """The canonical place: the checkpoint's tensors by name, then our own constants."""
        return (self.tensor is None, self.tensor or "", self.name)


@dataclass(frozen=True)
class Layout:
    """Where each blob goes; known before a byte is written."""

    blobs: tuple[Blob, ...]
    offsets: dict[str, int]  # name → offset of its record, as the program refers to it
    size: int  # of the file in bytes

    @property
    def key(self) -> str:
        """What tells it from other arrangements: SHA-256 (hex) of its blobs and their places."""
        return key_of([[b.name, b.dtype.str, b.shape, self.offsets[b.name]] for b in self.blobs])


def layout(blobs: Iterable[Blob]) -> Layout:
    """Arrange blobs in canonical order."""
    ordered = tuple(sorted(blobs, key=lambda blob: blob.order))
    offsets, position = {}, ALIGNMENT
    for blob in ordered:
        offsets[blob.name] = position
        position = _align(position + ALIGNMENT + blob.nbytes)
    end = offsets[ordered[-1].name] + ALIGNMENT + ordered[-1].nbytes if ordered else ALIGNMENT
    return Layout(ordered, offsets, end)


def write(path: Path, plan: Layout, advance: Advance = silent) -> str:
    """Write the weight file in one pass and return its SHA-256 as hex.

    Memory does not grow with the model: tensors are read, cast and checked in chunks.

    Raises:
        InputError: a tensor that is truncated or not finite.
        OSError: the disk is full, for example; the caller removes what was written.
    """
    with path.open("xb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
        out = _HashingWriter(file, hasher, advance)
        out.write(struct.pack("<II56x", len(plan.blobs), VERSION))
        for blob in plan.blobs:
            start = plan.offsets[blob.name]
            out.write(bytes(start - out.position))
            data, padding = start + ALIGNMENT, 8 * blob.nbytes - blob.bits
            record = (SENTINEL, blob.code, blob.nbytes, data, padding)
            out.write(struct.pack("<IIQQQ32x", *record))
            for chunk in blob.source.chunks(blob.dtype):
                out.write(chunk.view(np.uint8).data)
            assert out.position == data + blob.nbytes, blob.name
        return out.digest.hexdigest()


class _HashingWriter:
    """Writes and hashes at once, on two cores; the data may be changed when `write` returns."""

    def __init__(self, file: BinaryIO, hasher: ThreadPoolExecutor, advance: Advance) -> None:
        self.file, self.hasher, self.advance = file, hasher, advance
        self.position = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        hashing = self.hasher.submit(self.digest.update, data)
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) :]
        hashing.result()
        self.position += len(data)
        self.advance(len(data))


def _align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
