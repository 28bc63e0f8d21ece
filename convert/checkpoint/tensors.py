"""Tensors of a checkpoint, by reference: known by name and shape, read when needed.

Whoever needs a weight asks a `Tensor`; whether its values lie in a file as they are or are computed
from those that do is the tensor's own affair. `StoredTensor` is the first kind: the header of a
safetensors file (https://huggingface.co/docs/safetensors) gives every tensor's dtype, shape and
byte range. Nothing else is read until `read` or `chunks` is called, so a checkpoint of any size is
opened in milliseconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convert.errors import InputError
from convert.files.dtypes import FLOATS, INTEGERS, READ, WIDTHS, decoded
from convert.files.git_lfs import refuse_pointer
from convert.files.json_files import kind, parse_json, shown

CHUNK_BYTES = 4 << 20
MOST_AXES = 16
LARGEST_HEADER = 32 << 20  # bytes; that of SDXL has 0.3 million, and pictures in it a few
LONGEST_NAME = 1024  # letters
LARGEST_SIZE = 1 << 60  # elements and bytes; what numpy can count


class Tensor(Protocol):
    """One tensor of a checkpoint: what headers tell of it, and its values on request.

    Worker processes get tensors as pickles, so one holds no more than it takes to find its values.
    """

    @property
    def name(self) -> str:
        """What its file calls it, or the first of its files."""

    @property
    def dtype(self) -> str:
        """The dtype of the stored values, as safetensors spells it: F16, BF16, F32, F8_E4M3."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the checkpoint has."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def path(self) -> Path:
        """The file that errors name."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that its values are read from."""

    def key(self, digests: Mapping[Path, str]) -> Any:
        """What determines its values and shape, as JSON: of equal keys, they are equal.

        Args:
            digests: SHA-256 (hex) of `files`, which stands for where they lie.
        """

    def reshape(self, shape: tuple[int, ...]) -> Tensor:
        """The same elements under another shape; raises ValueError if their number differs."""

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """The elements in order, cast to `dtype`, as flat arrays of at most a few MiB.

        A chunk is only valid until the next one is asked for (its memory may be used again).

        Raises:
            InputError: values that cannot be read, or one that is not finite (also one that
                overflows `dtype`), with its index.
        """

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """The whole tensor as a new array of `dtype` in its shape. Raises as `chunks` does."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose elements lie one after another in a file: a `Tensor`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int  # of the first byte, from the start of the file

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.path,)

    def key(self, digests: Mapping[Path, str]) -> Any:
        """The file by its SHA-256, and what lies where in it."""
        return [digests[self.path], self.offset, self.dtype, self.shape]

    def reshape(self, shape: tuple[int, ...]) -> StoredTensor:
        """The same elements under another shape; raises ValueError if their number differs."""
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return replace(self, shape=shape)

    def chunks(self, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """As `Tensor.chunks`.

        Raises:
            InputError: a dtype that is no float's (a single integer is read as one), a file that
                ends early, or a value that `finite` refuses.
        """
        stored = FLOATS.get(self.dtype) or (INTEGERS.get(self.dtype) if self.size == 1 else None)
        if stored is None:
            known = "integers, no weights" if self.dtype in INTEGERS else "a dtype we cannot read"
            raise InputError(
                f"tensor `{self.name}` has dtype {self.dtype}, {known}; networks need {READ}",
                where=self.path,
            )
        count = CHUNK_BYTES // max(stored.itemsize, 2)  # 8-bit codes are widened
        buffer = np.empty(min(count, self.size), stored)
        with self.path.open("rb", buffering=0) as file:
            done = 0
            while done < self.size:
                part = buffer[: min(count, self.size - done)]
                self._read_exactly(file.fileno(), part, done * stored.itemsize)
                yield finite(decoded(part, self.dtype), dtype, done, self)
                done += len(part)

    def codes(self) -> np.ndarray:
        """The whole tensor as it is stored, flat; its dtype is one of `FLOATS` or `INTEGERS`.

        Raises:
            InputError: the file ends early.
        """
        out = np.empty(self.size, (FLOATS | INTEGERS)[self.dtype])
        with self.path.open("rb", buffering=0) as file:
            self._read_exactly(file.fileno(), out, 0)
        return out

    def _read_exactly(self, fd: int, out: np.ndarray, start: int) -> None:
        """Fill `out` with what lies `start` bytes after the tensor's first."""
        view, offset = out.view(np.uint8).data, self.offset + start
        while view:
            count = os.preadv(fd, [view], offset)
            if count == 0:
                raise InputError(
                    f"the file ends inside tensor `{self.name}`",
                    where=self.path,
                    hint="It is truncated or still being written: download it again.",
                )
            view, offset = view[count:], offset + count

    def read(self, dtype: np.dtype | type) -> np.ndarray:
        """As `Tensor.read`."""
        return gathered(self.chunks(dtype), self.shape, dtype)


def gathered(
    chunks: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype | type
) -> np.ndarray:
    """A tensor's chunks, one after another, as a new array of `dtype` and `shape`."""
    out = np.empty(math.prod(shape), dtype)
    done = 0
    for chunk in chunks:
        out[done : done + len(chunk)] = chunk
        done += len(chunk)
    return out.reshape(shape)


def finite(values: np.ndarray, dtype: np.dtype | type, start: int, tensor: Tensor) -> np.ndarray:
    """Values of a tensor as `dtype`, float16 or float32; not copied if they have it already.

    Args:
        values: flat, floats of any width.
        start: the index of the first in the flattened tensor.

    Raises:
        InputError: one is not finite, or not any more in `dtype`; says its index.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # reported with its place instead
        cast: np.ndarray = values.astype(dtype, copy=False)
    if are_finite(cast):
        return cast
    first = int(np.argmax(~np.isfinite(cast)))
    index = tuple(int(i) for i in np.unravel_index(start + first, tensor.shape))
    source = values[first] if values.itemsize == 8 else np.float32(values[first])
    problem = f"weight `{tensor.name}`{list(index)} is {source}"
    if np.isfinite(source):
        raise InputError(
            f"{problem}, which overflows {cast.dtype} (at most {np.finfo(cast.dtype).max})",
            where=tensor.path,
            hint="float16 weights, and compressed ones, cannot hold it. A VAE can stay in float32: "
            '`vae_precision = "float32"`, without bits of its own.',
        )
    raise InputError(
        f"{problem}: not a finite number",
        where=tensor.path,
        hint="The file is damaged or a training run diverged; nothing can be made of it.",
    )


def are_finite(values: np.ndarray) -> bool:
    """Whether no float of an array is infinite or NaN."""
    if not values.size:
        return True
    # Bit patterns are compared, many times faster than np.isfinite for fp16: the largest as signed
    # integers is that of the largest positive value, as unsigned ones of the most negative one.
    signed, unsigned = (f"{kind}{values.itemsize}" for kind in "iu")
    infinities = np.array([np.inf, -np.inf], values.dtype).view(unsigned)
    most = values.view(signed).max(), values.view(unsigned).max()
    return bool(most[0] < infinities[0] and most[1] < infinities[1])


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name; raises as `read_safetensors` does."""
    return read_safetensors(path)[0]


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file, by name, and its metadata, from its header alone.

    Raises:
        InputError: not a safetensors file, a pointer of Git LFS, a header that contradicts itself,
            or a truncated file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            refuse_pointer(path, start)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or not 2 <= length <= size - 8:
                raise _damaged(path, f"its header claims {length} bytes of a file of {size}")
            if length > LARGEST_HEADER:
                most = f"at most {LARGEST_HEADER} are read"
                raise _damaged(path, f"its header claims {length} bytes; {most}")
            file.seek(8)
            data = file.read(length)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path) from None
    try:
        header = parse_json(data, path)
    except InputError as error:
        raise _damaged(path, f"its header {error.problem}") from None
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is {kind(header)}, not an object")
    tensors = {
        name: _entry(name, entry, path, 8 + length, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _require_contiguous(header, path, size - 8 - length)
    return tensors, _metadata(header.get("__metadata__", {}), path)


def _metadata(values: Any, path: Path) -> dict[str, str]:
    """What a header says beside its tensors: texts by name, as the format demands."""
    if not isinstance(values, dict):
        raise _damaged(path, f"its `__metadata__` is {kind(values)}, not an object")
    for name, value in values.items():
        if not isinstance(value, str):
            raise _damaged(path, f"`__metadata__` gives {shown(name)} as {kind(value)}, not a text")
    return values


def _entry(name: str, entry: Any, path: Path, start: int, size: int) -> StoredTensor:
    """A tensor as the header has it; `start` is where the data begins in a file of `size`."""
    if any(letter < " " for letter in name) or len(name) > LONGEST_NAME:
        raise _damaged(path, f"a tensor is called {ascii(name)[:80]}")
    facts = entry if isinstance(entry, dict) else {}
    dtype, offsets = facts.get("dtype"), _counts(facts.get("data_offsets"), most=2)
    shape = _counts(facts.get("shape"), most=MOST_AXES)
    if not isinstance(dtype, str) or shape is None:
        raise _damaged(path, f"the entry of tensor `{name}` is malformed: {shown(entry)}")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        found = shown(facts.get("data_offsets"))
        raise _damaged(path, f"tensor `{name}` lies at {found}, not between two offsets")
    begin, end = offsets
    width = WIDTHS.get(dtype)
    if width is not None and end - begin != width * math.prod(shape):
        raise _damaged(path, f"tensor `{name}` of {dtype}{shape} has {end - begin} bytes")
    if math.prod(n for n in shape if n) >= LARGEST_SIZE:  # of an empty one, which has no bytes
        raise _damaged(path, f"tensor `{name}` claims the shape {shown(shape)}")
    if start + end > size:
        raise InputError(
            f"truncated: tensor `{name}` ends at byte {start + end} of {size}",
            where=path,
            hint="Download the file again.",
        )
    return StoredTensor(name, dtype, tuple(shape), path, start + begin)


def _counts(values: Any, *, most: int) -> list[int] | None:
    """The values, if they are a list of at most `most` integers that can be sizes or offsets."""
    if not isinstance(values, list) or len(values) > most:
        return None
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in values)
    return values if whole and all(0 <= n < LARGEST_SIZE for n in values) else None


def _require_contiguous(header: dict[str, Any], path: Path, size: int) -> None:
    """Tensors fill the data without holes and do not overlap, as the format demands."""
    places = sorted(
        (*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__"
    )
    at = 0
    for begin, end, name in places:
        if begin != at:
            raise _damaged(path, f"tensor `{name}` begins at byte {begin} of the data, not at {at}")
        at = end
    if at != size:
        raise _damaged(path, f"its tensors have {at} bytes of data, the file {size}")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"not a readable safetensors file: {what}", where=path, hint="Download the file again."
    )
