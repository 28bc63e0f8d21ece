"""How much memory there is for this process: the machine's, and its control group's limit."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 where there is no limit


def physical_memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """(total, available) in bytes; None for what the system does not say."""
    try:
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.M))
        return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, OSError, ValueError):
        return None, None


def cgroup_limit(
    root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")
) -> int | None:
    """The lowest memory limit in bytes of this process's control groups, v2 or v1; None if none.

    A limit may stand at any level, and in a container the path is seen from outside or not at all.
    """
    try:
        groups = [line.split(":", 2) for line in mine.read_text().splitlines()]
    except OSError:
        return None
    limits = []
    for _, controllers, path in (g for g in groups if len(g) == 3):
        if controllers == "":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        for level in [folder, *folder.parents]:
            if level.is_relative_to(base):
                limits.append(_number(level / name))
    known = [limit for limit in limits if limit is not None and limit < UNLIMITED]
    return min(known, default=None)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # absent, or `max`
        return None


@contextmanager
def uncollected() -> Iterator[None]:
    """Meanwhile nobody looks for garbage that refers to itself.

    Where hundreds of thousands of objects are made and all are kept, looking through them again and
    again takes longer than making them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def give_back() -> None:
    """Give memory that was freed back to the system; glibc keeps it where something lies above it.

    After a network of gigabytes that is most of what it took. Does nothing with other libraries.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
