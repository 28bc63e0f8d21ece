"""Files on this disk: their digests, links to them, and what the user can do about errors."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

from convert.errors import InputError
from convert.files.appearing import appearing
from convert.process.progress import Advance, silent


def digest_file(path: Path, report: Advance = silent) -> str:
    """SHA-256 (hex) of a file, streamed; `report` is told the bytes as they are read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(4 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            report(count)
    return digest.hexdigest()


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the disks differ; atomically."""
    with appearing(target) as new:
        try:
            os.link(source, new)
        except OSError:
            shutil.copy2(source, new)


def link_tree(source: Path, target: Path) -> None:
    """Rebuild a folder from hard links, or from copies where links are impossible."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        link(file, target / file.relative_to(source))


def disk_error(error: OSError, where: object) -> InputError:
    """What the user can do about an error of the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(
            "the disk is full",
            where=where,
            hint="Free some space and run it again: it goes on where it stopped.",
        )
    return InputError(
        f"cannot read or write: {error.strerror}",
        where=error.filename or where,
        hint="Check its permissions, or choose another folder.",
    )


def name_as_given(path: Path) -> str:
    """The name that somebody has given a file or folder; a link has its own, not its target's."""
    return Path(os.path.abspath(path)).name  # noqa: PTH100  `resolve` follows links
