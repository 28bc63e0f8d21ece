"""Room on the disk for archives, which are copies, unlike the artifacts that they are made of."""

from __future__ import annotations

import shutil
from pathlib import Path

from convert.errors import InputError
from convert.units import size


class NoRoom(InputError):
    """The archives of a release do not fit on the disk."""


def free_at(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not be there yet."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    return shutil.disk_usage(there).free


def require_room(folder: Path, needed: int) -> None:
    """Raise NoRoom if so many bytes do not fit on the disk of a folder."""
    free = free_at(folder)
    if needed > free:
        raise NoRoom(
            f"no space: {size(needed)} to write, {size(free)} free",
            where=folder,
            hint="Archives are copies, unlike artifacts. Free some space, `pack` on another disk "
            "with --out, or fewer artifacts; `publish` of the run's folder needs room for one at "
            "a time, and `run --no-release` makes none.",
        )
