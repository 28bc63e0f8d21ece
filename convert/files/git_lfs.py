"""Pointer files of Git LFS: what a checkout holds in place of a file that was not downloaded.

Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a text of less than 1024 bytes
whose first line is the version.
"""

from __future__ import annotations

from pathlib import Path

from convert.errors import InputError

VERSIONS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",  # before its first release
)
PROBLEM = "is a Git LFS pointer, not the file itself"
REMEDY = "Fetch it with `git lfs pull` in its checkout, or download it again."


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins with these bytes, 64 or more of them, is a pointer."""
    return start.startswith(VERSIONS)


def refuse_pointer(path: Path, start: bytes | None = None) -> None:
    """Raise InputError if a file is a pointer.

    Args:
        path: the file.
        start: its first bytes, where they are read already.

    Raises:
        OSError: it cannot be read.
    """
    if start is None:
        with path.open("rb") as file:
            start = file.read(64)
    if is_pointer(start):
        raise InputError(PROBLEM, where=path, hint=REMEDY)
