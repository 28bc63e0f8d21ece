"""Zip archives whose members are stored as they are: where in the file each of them lies.

Only such archives can be read by reference. The directory at the end is Python's `zipfile`'s to
read; what it says is checked against the file before anything is believed.
Source: PKWARE's APPNOTE, 4.3 and 4.4.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from convert.errors import InputError
from convert.files.json_files import reason

LARGEST_DIRECTORY = 8 << 20  # bytes; that of SDXL has 0.2 million
_LOCAL = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Member:
    """A member's bytes: `size` of them from `offset` in the file."""

    offset: int
    size: int


class _Bounded(io.FileIO):
    """A file of which `zipfile` cannot be made to read more than a directory's worth at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            here = self.tell()
            size = self.seek(0, io.SEEK_END) - here
            self.seek(here)
        if size > LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size) or b""


def read_members(path: Path) -> dict[str, Member]:
    """The members of a zip archive by their names; folders are left out.

    Raises:
        InputError: not a zip archive, a damaged one, a member that is compressed, encrypted or a
            link, one with an absolute name or one that leads out of the archive, two of one name,
            or members that do not lie in the file one beside another.
    """
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            size = file.seek(0, io.SEEK_END)
            entries, end = archive.infolist(), archive.start_dir
            if entries and min(entry.header_offset for entry in entries) != 0:
                raise _bad(path, "does not begin where the file does")
            found: dict[str, Member] = {}
            for entry in entries:
                _require_plain(entry, path)
                name = entry.orig_filename
                if name in found:
                    raise _bad(path, f"has the member {_shown(name)} twice")
                found[name] = _place(file, entry, path)
    except InputError:
        raise
    except Exception as error:  # whatever `zipfile` makes of a damaged directory
        raise _bad(path, f"is not readable: {reason(error)}") from None
    _require_apart(found, min(end, size), path)
    return {name: member for name, member in found.items() if not name.endswith("/")}


def _require_plain(entry: zipfile.ZipInfo, path: Path) -> None:
    """Raises InputError unless a member is a plain file or folder within the archive."""
    name = entry.orig_filename
    shown = _shown(name)
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise _bad(path, f"holds the link {shown}")
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or name[0] in "/\\" or ".." in parts or ":" in parts[0]:
        raise _bad(path, f"names the member {shown}, which leads out of the archive")
    if entry.flag_bits & _ENCRYPTED:
        raise _bad(path, f"holds the encrypted member {shown}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise _bad(path, f"holds the compressed member {shown}; PyTorch stores them as they are")
    if name.endswith("/") and entry.file_size:
        raise _bad(path, f"gives the folder {shown} a content")


def _place(file: io.FileIO, entry: zipfile.ZipInfo, path: Path) -> Member:
    """Where a member's bytes lie: after its own header, which repeats its name."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) == _LOCAL.size:
        signature, name_length, extra_length = _LOCAL.unpack(header)
        name = file.read(name_length).decode("utf-8", "replace")
        if signature == b"PK\x03\x04" and name == entry.orig_filename:
            offset = entry.header_offset + _LOCAL.size + name_length + extra_length
            return Member(offset, entry.file_size)
    raise _bad(path, f"has no header of member {_shown(entry.orig_filename)} where it should be")


def _require_apart(members: dict[str, Member], end: int, path: Path) -> None:
    """Raises InputError unless the members lie before the directory and do not overlap."""
    at = 0
    for name, member in sorted(members.items(), key=lambda item: item[1].offset):
        if member.offset < at or member.offset + member.size > end:
            what = f"gives member {_shown(name)} {member.size} bytes at {member.offset}"
            raise _bad(path, f"{what}, of which the file has not as many")
        at = member.offset + member.size


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 60 else f"{name[:60]}…")


def _bad(path: Path, what: str) -> InputError:
    return InputError(
        f"its zip archive {what}",
        where=path,
        hint="Download the file again, or take the same weights as .safetensors.",
    )
