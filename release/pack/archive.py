"""One ZIP archive per bundle: a single top folder of the archive's own name, the same bytes every
time.

Weights are stored, because palettes and float16 do not get smaller; text is deflated. Entries are
sorted, with one time and the same permissions, and ZIP64 where a file needs it. Written as a
stream, piece by piece. ZIP application note:
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT"""

from __future__ import annotations

import io
import os
import re
import shutil
import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.process.progress import Advance, silent

PIECE = 4 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that ZIP knows
PERMISSIONS = 0o100644  # a regular file, rw-r--r--
UNIX = 3
STORED = (".bin",)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SMALLEST_PART = 1 << 10


def write_archive(folder: Path, archive: Path, advance: Advance = silent) -> None:
    """Write `archive` from the files of `folder`, below a folder called as the archive is.

    Args:
        archive: ends in .zip.
        advance: is told the bytes of the files as they are read.

    Raises:
        OSError: the disk is full, for example.
    """
    top = archive.name.removesuffix(".zip")
    with zipfile.ZipFile(archive, "w", allowZip64=True) as out:
        for path in _files(folder):
            info = zipfile.ZipInfo(f"{top}/{path.relative_to(folder).as_posix()}", EPOCH)
            info.create_system, info.external_attr = UNIX, PERMISSIONS << 16
            is_stored = path.suffix in STORED
            info.compress_type = zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED
            info.file_size = path.stat().st_size  # tells zipfile whether ZIP64 is needed
            with path.open("rb") as source, out.open(info, "w") as target:
                while piece := source.read(PIECE):
                    target.write(piece)
                    advance(len(piece))


def _files(folder: Path) -> list[Path]:
    """The files below, in one order on every file system."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix().encode())


def split(archive: Path, size: int) -> list[Path]:
    """Cut an archive into `<name>.zip.001`, … of at most `size` bytes, and remove it.

    `cat <name>.zip.* > <name>.zip` joins them. An archive that is small enough stays as it is. It
    takes the room of one part beside the archive's own.

    Raises:
        InputError: more than 999 parts.
    """
    total = archive.stat().st_size
    count = -(-total // size)
    if count == 1:
        return [archive]
    if count > 999:
        raise InputError(
            f"{total} bytes make {count} parts of {size}; 999 is the most",
            where=archive.name,
            hint="Give --split a larger size.",
        )
    parts = [archive.with_name(f"{archive.name}.{number:03}") for number in range(1, count + 1)]
    # From the end, so that what is cut off is not there twice for long.
    for number in range(count - 1, 0, -1):
        with archive.open("rb+") as source, parts[number].open("wb") as target:
            source.seek(number * size)
            shutil.copyfileobj(source, target, PIECE)
            source.truncate(number * size)
    archive.rename(parts[0])
    return parts


class Joined(io.RawIOBase):
    """The parts of an archive as one file to read, without joining them on the disk."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._files = [part.open("rb") for part in parts]
        ends = accumulate(part.stat().st_size for part in parts)
        self._ends = list(ends)  # where each part ends in the whole
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._ends[-1]}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        index = bisect_right(self._ends, self._at)
        if index == len(self._ends):
            return 0
        start = self._ends[index - 1] if index else 0
        file, view = self._files[index], memoryview(buffer)
        file.seek(self._at - start)
        count = file.readinto(view[: self._ends[index] - self._at])
        self._at += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500 MB`, `1GiB` or `1000000`. Raises InputError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMG]?i?B)?", text.strip(), re.IGNORECASE)
    unit = (match[2] or "B").upper() if match else ""
    size = int(float(match[1]) * _UNITS[unit]) if match and unit in _UNITS else 0
    if size < SMALLEST_PART:
        raise InputError(
            f"`{text}` is not a size of at least {SMALLEST_PART} bytes",
            hint="Write it as 2GB, 500MB or 1GiB.",
        )
    return size
