"""Weights by reference: `weight.bin` (MIL blob storage version 2), mapped and not read.

Layout (coremltools `mlmodel/src/MILBlob/Blob/StorageFormat.hpp`): a 64-byte header (count u32,
version u32), then per blob a 64-byte record (sentinel u32, dtype u32, size u64, data offset u64,
unused bits u64) and its data, each aligned to 64 bytes. A program refers to the record's offset.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from convert.errors import CannotExecute, InputError
from convert.files.git_lfs import PROBLEM, is_pointer

HEADER = 64  # bytes of the file's header, and of each blob's record
SENTINEL = 0xDEADBEEF
RECORD = np.dtype(
    [("sentinel", "<u4"), ("dtype", "<u4"), ("size", "<u8"), ("offset", "<u8"), ("padding", "<u8")]
)

BLOB_DTYPES = {  # coremltools `mlmodel/src/MILBlob/Blob/BlobDataType.hpp`
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    5: "bf16",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
    16: "fp8e4m3fn",
    17: "fp8e5m2",
}

NUMPY_DTYPES: dict[str, np.dtype] = {
    "fp16": np.dtype("<f2"),
    "fp32": np.dtype("<f4"),
    "fp64": np.dtype("<f8"),
    "bool": np.dtype(np.bool_),
    "int8": np.dtype(np.int8),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
}
UNREADABLE = {"bf16": 2, "fp8e4m3fn": 1, "fp8e5m2": 1}  # bytes; no op here can read them
SUB_BYTE_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}

REMEDY = "Download or convert the package again; a checkout may need `git lfs pull`."


def packed_size(dtype: str, count: int) -> int:
    """The bytes that `count` elements of a MIL dtype take; sub-byte types are packed."""
    if dtype in SUB_BYTE_BITS:
        return math.ceil(count * SUB_BYTE_BITS[dtype] / 8)
    return count * (UNREADABLE.get(dtype) or NUMPY_DTYPES[dtype].itemsize)


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """`count` unsigned integers of `bits` bits each, as uint8.

    Elements follow one another from the least significant bit on and may straddle two bytes.
    Source: coremltools `restore_elements_from_packed_bits` and MILBlob's `SubByteTypes.cpp`.
    """
    packed = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
    if bits == 8:
        return packed[:count]
    # The smallest run of bytes that holds whole elements: 1 byte for 1, 2, 4 bits, 3 for 3, 6.
    group = bits // math.gcd(bits, 8)
    rows = -(-packed.size // group)
    if rows * group != packed.size:
        packed = np.concatenate([packed, np.zeros(rows * group - packed.size, np.uint8)])
    table = packed.reshape(rows, group)
    out = np.empty((rows, group * 8 // bits), np.uint8)
    for element in range(out.shape[1]):
        byte, shift = divmod(element * bits, 8)
        value = table[:, byte] >> np.uint8(shift)
        if shift + bits > 8:
            value |= table[:, byte + 1] << np.uint8(8 - shift)
        np.bitwise_and(value, np.uint8((1 << bits) - 1), out=out[:, element])
    return out.reshape(-1)[:count]


def decode(packed: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Raw bytes as an array of a MIL dtype; sub-byte types come out as uint8, int4 as int8."""
    if dtype not in SUB_BYTE_BITS:
        return packed.view(NUMPY_DTYPES[dtype]).reshape(shape)
    values = unpack_bits(packed, SUB_BYTE_BITS[dtype], math.prod(shape))
    if dtype == "int4":
        values = (((values ^ 8).view(np.int8)) - 8).astype(np.int8)
    return values.reshape(shape)


def header_problem(start: bytes, size: int) -> str | None:
    """Why a file of `size` bytes that begins with these 64 is no weight file; None if it is one."""
    if is_pointer(start):
        return PROBLEM
    if size < HEADER:
        return f"not a weight file: only {size} bytes"
    version = int.from_bytes(start[4:8], "little")
    if version != 2:
        return f"not a weight file: blob storage version {version}, only version 2 is known"
    return None


def record_problem(
    record: bytes, offset: int, size: int, dtype: str, shape: tuple[int, ...]
) -> str | None:
    """Why a blob is not what a program declares, or None.

    Args:
        record: the 64 bytes at `offset`; fewer where the file ends.
        size: of the file, in bytes.
        dtype: the MIL dtype that the program declares.
        shape: likewise.
    """
    if offset % 64 or offset < HEADER or len(record) < RECORD.itemsize or offset + HEADER > size:
        return f"no blob record at offset {offset} of a file of {size} bytes"
    found = np.frombuffer(record, RECORD, 1)[0]
    if int(found["sentinel"]) != SENTINEL:
        return (
            f"the blob record at offset {offset} starts with {int(found['sentinel']):#010x}, "
            f"not {SENTINEL:#010x}"
        )
    start, length = int(found["offset"]), int(found["size"])
    if start + length > size:
        return (
            f"truncated: the blob at offset {offset} ends at byte {start + length}, the file at "
            f"{size}"
        )
    stored = BLOB_DTYPES.get(int(found["dtype"]), f"dtype {int(found['dtype'])}")
    # bool has no blob type of its own, it is written as uint8 or int8.
    if stored != dtype and not (dtype == "bool" and stored in ("uint8", "int8")):
        return f"the blob at offset {offset} holds {stored}, not {dtype}"
    expected = packed_size(dtype, math.prod(shape))
    if length != expected:
        return (
            f"the blob at offset {offset} has {length} bytes, {dtype}{list(shape)} needs {expected}"
        )
    return None


class WeightFile:
    """One `weight.bin`; opened at the first read, and only the pages that are used are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: np.ndarray | None = None

    def __getstate__(self) -> dict[str, object]:
        """For another process, which maps the file itself."""
        return {"path": self.path, "_bytes": None}

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The blob whose record is at `offset`: a view of the file, or a copy if sub-byte.

        Raises:
            InputError: as `check`.
            CannotExecute: a dtype that nothing here computes with.
        """
        packed = self.packed(offset, dtype, shape)
        if dtype in UNREADABLE:
            raise CannotExecute(f"a constant of type {dtype} cannot be read", where=self.path)
        return decode(packed, dtype, shape)

    def packed(self, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The bytes of the blob whose record is at `offset`: a view of the file.

        Raises:
            InputError: as `check`.
        """
        start, size = self.check(offset, dtype, shape)
        return self.mapped()[start : start + size]

    def check(self, offset: int, dtype: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Where the data of the blob is whose record is at `offset`, and its size in bytes.

        Raises:
            InputError: the file is missing, truncated or foreign, or the blob's dtype or size is
                not the declared one.
        """
        data = self.mapped()
        record = data[offset : offset + HEADER].tobytes()
        problem = record_problem(record, offset, data.size, dtype, shape)
        if problem is not None:
            raise self._bad(problem)
        found = np.frombuffer(record, RECORD, 1)[0]
        return int(found["offset"]), int(found["size"])

    def mapped(self) -> np.ndarray:
        """The whole file, uint8; of it only what is used is read.

        Raises:
            InputError: the file is missing or foreign.
        """
        if self._bytes is None:
            if not self.path.is_file():
                raise self._bad("the weight file is missing")
            with self.path.open("rb") as file:
                start = file.read(HEADER)
            problem = header_problem(start, self.path.stat().st_size)
            if problem is not None:
                raise self._bad(problem)
            # Copy-on-write: torch wants writable memory, and the file must never change.
            self._bytes = np.memmap(self.path, np.uint8, "c").view(np.ndarray)  # a view cuts faster
        return self._bytes

    def _bad(self, problem: str) -> InputError:
        return InputError(problem, where=self.path, hint=REMEDY)
