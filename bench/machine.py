"""The machine that is measured on: what it is, without its name, and its page cache."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from convert.process.memory import cgroup_limit, physical_memory
from convert.units import size

LIBRARIES = ("sdxl-coreml", "coremltools", "numpy", "safetensors", "torch")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def describe(folder: Path) -> list[str]:
    """Facts for people: processor, memory, kernel, file system of `folder`, versions."""
    total, _ = physical_memory()
    limit = cgroup_limit()
    memory = "unknown memory" if total is None else f"{size(total)} of memory"
    if limit is not None and (total is None or limit < total):
        memory += f", limited to {size(limit)}"
    swap = re.search(r"^SwapTotal:\s+(\d+) kB", _read(Path("/proc/meminfo")), re.M)
    memory += ", no swap" if swap and int(swap[1]) == 0 else ""
    return [
        f"{len(os.sched_getaffinity(0))} cores ({_processor()}), {memory}",
        f"{platform.system()} {platform.release()} on {platform.machine()}, {_filesystem(folder)}",
        ", ".join([f"Python {platform.python_version()}", *_versions()]),
    ]


def empty_page_cache(files: Iterable[Path]) -> str:
    """Make `files` come from the disk when they are next read; returns how, for people.

    The whole page cache where that is permitted, else these files' part of it. Reading them first
    instead would treat all alike too, but 7 GB do not stay cached on a small machine, and what is
    cached already is not charged to the control group of the one who uses it.
    """
    os.sync()  # only clean pages can be dropped
    try:
        DROP_CACHES.write_text("3")
        return "dropped as a whole (programs and libraries too)"
    except OSError:
        pass
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "dropped for the checkpoint's files (for the whole cache one must be root)"


def _processor() -> str:
    # ARM kernels have no such line.
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.M)
    return found[1] if found else platform.machine()


def _filesystem(folder: Path) -> str:
    """The type alone: device and mount point would name the machine."""
    path, best, kind = folder.resolve(), "", "unknown file system"
    for line in _read(Path("/proc/mounts")).splitlines():
        _, point, type_, *_ = line.split()
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, type_
    return kind


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
