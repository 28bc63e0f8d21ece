"""A file of weights with a hole in it: all that opening it reads, and nothing of its weights.

Of safetensors that is the header; of the zip archives that PyTorch writes, the directory at the end
and the pickle that lists the tensors. It stands where it stands in the true file, whose size the
copy has. The header in front of each member of an archive only repeats what the directory says, so
these are written, not fetched: there are thousands. So one of 7 GB takes a megabyte or two.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from convert.files.pickle_values import LARGEST_PICKLE
from convert.files.stored_zip import LARGEST_DIRECTORY

ReadPart = Callable[[int, int], bytes]  # so many bytes of the true file, from an offset on

FIRST = 1 << 20  # bytes asked for at once; the header of SDXL has a third of that
LARGEST_HEADER = 32 << 20  # bytes; what is larger is refused by its length alone
LARGEST_EXTRA = 1 << 16  # bytes that may stand between a member's name and its content
_LOCAL = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
_NEEDED = ("data.pkl", "byteorder")  # members of an archive that are read when it is opened


def write_headers(target: Path, size: int, read: ReadPart) -> bool:
    """Write a copy whose weights are a hole.

    One of less than a megabyte is copied whole; what is neither safetensors nor an archive has its
    first megabyte, by which a reader refuses it.

    Args:
        size: of the true file, in bytes.
        read: parts of it.

    Returns:
        Whether that is enough; if not, nothing was written: the values of tensors lie between those
        that tell what they are, as in PyTorch's files from before 1.6.
    """
    start = read(0, min(FIRST, size))
    if size <= len(start):  # no hole at all
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(start)
        return True
    is_archive = start.startswith(b"PK")
    if start[5:8] == b"\0\0\0" and start[8:9] == b"{":
        length = 8 + int.from_bytes(start[:8], "little")
        if len(start) < length <= min(LARGEST_HEADER, size):
            start += read(len(start), length - len(start))
        start = start[:length]
        if b'.comfy_quant"' in start:  # notes on how a layer is quantised, each a tensor
            return False
    elif start.startswith((b"\x80", b"(", b"]", b"}", b"c")):  # a pickle by itself
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w+b") as file:
        file.write(start)
        file.truncate(size)
        if is_archive:
            _fill_archive(file, len(start), size, read)
    return True


def _fill_archive(file: BinaryIO, done: int, size: int, read: ReadPart) -> None:
    """Add what opening an archive reads; what is no archive after all is left to whoever opens it.

    Args:
        done: bytes at its start that are there.
    """
    tail_at = max(done, size - FIRST)
    tail = read(tail_at, size - tail_at)
    _put(file, tail_at, tail)
    directory = _directory(tail)
    if directory is not None and done <= directory < tail_at:
        _put(file, directory, read(directory, tail_at - directory))
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception:  # whatever `zipfile` makes of a damaged one: whoever opens it says it better
        return
    for entry in entries:
        name = entry.orig_filename.encode("utf-8", "replace")
        at, behind = entry.header_offset, entry.header_offset + _LOCAL.size + len(name)
        is_needed = entry.orig_filename.rpartition("/")[2] in _NEEDED
        if is_needed and entry.file_size <= LARGEST_PICKLE:
            end = min(behind + LARGEST_EXTRA + entry.file_size, tail_at)
            if end > done and at < end:
                _put(file, at, read(at, end - at))
        elif done < behind <= tail_at:
            _put(file, at, _LOCAL.pack(b"PK\x03\x04", len(name), 0) + name)


def _directory(tail: bytes) -> int | None:
    """Where the directory of an archive begins, by the records at its end; None if none is read."""
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return None
    length, start = struct.unpack_from("<II", tail, end + 12)
    large = tail.rfind(b"PK\x06\x06", 0, end)  # of an archive of more than 4 GB
    if 0xFFFFFFFF in (length, start) and 0 <= large <= end - 56:
        length, start = struct.unpack_from("<QQ", tail, large + 40)
    return start if length <= LARGEST_DIRECTORY else None


def _put(file: BinaryIO, at: int, data: bytes) -> None:
    file.seek(at)
    file.write(data)
