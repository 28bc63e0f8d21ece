"""A bundle to look at: a folder, or what is inside a ZIP archive, without unpacking it."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from convert.errors import InputError
from convert.files.json_files import LARGEST, parse_json

PIECE = 4 << 20


class Tree(Protocol):
    """Files by path; paths are relative and separated by `/`."""

    @property
    def name(self) -> str:
        """What the folder is called; empty for an archive's top."""

    @property
    def files(self) -> Mapping[str, int]:
        """Size of each file in bytes, by path."""

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file, piece by piece. Raises OSError if it cannot be read."""

    def at(self, path: str, places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes at each (offset, count) of a file, the offsets ascending.

        Raises:
            OSError: it cannot be read.
        """


@dataclass(frozen=True)
class FolderTree:
    """A folder on the disk."""

    root: Path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name

    @cached_property
    def files(self) -> dict[str, int]:
        """Path in the folder → bytes, sorted."""
        return {
            path.relative_to(self.root).as_posix(): path.stat().st_size
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }

    def pieces(self, path: str) -> Iterator[bytes]:
        """A file's bytes, in pieces of `PIECE`; raises OSError where it cannot be read."""
        with (self.root / path).open("rb") as stream:
            while piece := stream.read(PIECE):
                yield piece

    def at(self, path: str, places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes at some (offset, count) of a file, which may end sooner."""
        with (self.root / path).open("rb") as stream:
            for offset, count in places:
                stream.seek(offset)
                yield stream.read(count)


@dataclass(frozen=True)
class ZipTree:
    """The files below one folder of an archive."""

    archive: zipfile.ZipFile
    prefix: str  # the folder with its slash, or "" for the archive's top

    @property
    def name(self) -> str:
        """The folder's name in the archive."""
        return self.prefix.rstrip("/")

    @cached_property
    def files(self) -> dict[str, int]:
        """Path in the folder → bytes before compression."""
        return {
            info.filename.removeprefix(self.prefix): info.file_size
            for info in self.archive.infolist()
            if info.filename.startswith(self.prefix) and not info.is_dir()
        }

    def pieces(self, path: str) -> Iterator[bytes]:
        """A file's bytes, in pieces of `PIECE`; raises OSError where it cannot be read."""
        try:
            with self.archive.open(self.prefix + path) as stream:
                while piece := stream.read(PIECE):
                    yield piece
        except KeyError:
            raise FileNotFoundError(path) from None
        except zipfile.BadZipFile as error:  # a checksum that does not fit
            raise OSError(str(error)) from None

    def at(self, path: str, places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes at some rising (offset, count) of a file, which may end sooner."""
        # zipfile reads all that it skips, which of stored weights is gigabytes.
        info = self.archive.getinfo(self.prefix + path)
        stored = info.compress_type == zipfile.ZIP_STORED
        file: Any = self.archive.fp if stored else self.archive.open(info)
        start = _data_offset(file, info) if stored else 0
        for offset, count in places:
            file.seek(start + min(offset, info.file_size))
            yield file.read(min(count, max(0, info.file_size - offset)))


def _data_offset(file: Any, info: zipfile.ZipInfo) -> int:
    """Where a member's data begins: after its local header, its name and its extra field.

    Source: APPNOTE.TXT 4.3.7.
    """
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30:
        raise OSError(f"the archive ends before {info.filename}")
    name, extra = struct.unpack_from("<HH", header, 26)
    return info.header_offset + 30 + int(name) + int(extra)


def read(tree: Tree, path: str) -> bytes:
    """All of a small file."""
    return b"".join(tree.pieces(path))


def digest(tree: Tree, path: str) -> str:
    """SHA-256 (hex) of a file."""
    found = hashlib.sha256()
    for piece in tree.pieces(path):
        found.update(piece)
    return found.hexdigest()


def read_json(tree: Tree, path: str) -> Any:
    """The value of a JSON file; OSError if it cannot be read, InputError if it is no JSON."""
    size = tree.files.get(path, 0)
    if size > LARGEST:
        raise InputError(f"has {size} bytes; at most {LARGEST} are read", where=path)
    return parse_json(read(tree, path), path, infinities=True)
