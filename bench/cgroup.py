"""Memory control groups: run a command where it may have so many bytes and no more, without swap.

The limit counts everything the kernel charges to the group: anonymous memory, and the page cache
of files that its processes are first to read or write.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from convert.errors import CannotExecute

ROOT = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")
# A shell that joins the group and then becomes the command, so that nothing runs outside.
JOIN = 'echo 0 > "$0" || exit 125; exec "$@"'
# A group may exist and limit nothing (systemd where the controller is not delegated to the user).
PROBE = (
    "import sys; from convert.process.memory import cgroup_limit as c; "
    "sys.exit((c() or 1e30) > {0})"
)
FILES = {
    # Control files by cgroup version: limit, limit with swap, peak, and where kills are counted.
    1: (
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.oom_control",
    ),
    2: ("memory.max", "memory.swap.max", "memory.peak", "memory.events"),
}


class CannotLimit(CannotExecute):
    """No memory control group can be made here, or it would not limit anything."""


@dataclass(frozen=True)
class Limit:
    """A memory limit in force for commands that are started with `prefix` before them."""

    prefix: tuple[str, ...]
    how: str  # for people
    folder: Path | None = None  # None: systemd's, gone when the command has ended
    version: int = 1

    @property
    def peak(self) -> int | None:
        """Most bytes charged to the group so far, page cache included; None if unknown."""
        try:
            return int((self.folder / FILES[self.version][2]).read_text()) if self.folder else None
        except (OSError, ValueError):  # memory.peak came with Linux 5.19
            return None

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory in the group."""
        try:
            text = (self.folder / FILES[self.version][3]).read_text() if self.folder else ""
        except OSError:
            return 0
        fields = dict(line.split() for line in text.splitlines())
        return int(fields.get("oom_kill", 0))


@contextmanager
def memory_limit(limit: int) -> Iterator[Limit]:
    """A memory limit of `limit` bytes without swap, for the commands that its prefix starts.

    A new control group (version 1 or 2) where this process may make one, below its own limits;
    else a systemd scope. A probe that runs inside must see the limit.

    Raises:
        CannotLimit: neither works here.
    """
    for version, parent in parents():
        folder = parent / f"bench-{os.getpid()}"
        prefix = ("sh", "-c", JOIN, str(folder / "cgroup.procs"))
        try:
            if _make(folder, version, limit) and _is_in_force(prefix, limit):
                yield Limit(prefix, f"cgroup v{version}", folder, version)
                return
        finally:
            _remove(folder)
    scope = _systemd(limit)
    if shutil.which("systemd-run") is None or not _is_in_force(scope, limit):
        raise CannotLimit(
            "not possible here: no memory control group can be written, and systemd makes no scope",
            hint="Run as root, or in a session of systemd's that memory is delegated to.",
        )
    yield Limit(scope, "systemd scope")


def parents(root: Path = ROOT, mine: Path = MINE) -> list[tuple[int, Path]]:
    """(version, folder) of the control groups below which a group of ours would limit memory.

    Below this process's own group where possible, so that limits which hold for it go on to hold.
    Version 2 forbids that while processes are in it; there it is a sibling.
    """
    try:
        groups = [line.split(":", 2) for line in mine.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (g for g in groups if len(g) == 3):
        if "memory" in controllers.split(","):
            own = root / "memory" / path.lstrip("/")
            found += [(1, own)] if own.is_dir() else []
        elif controllers == "":
            base = root if (root / "cgroup.controllers").exists() else root / "unified"
            own = base / path.lstrip("/")
            for folder in (own, own.parent) if own != base else (own,):
                with suppress(OSError):
                    if "memory" in (folder / "cgroup.subtree_control").read_text().split():
                        found.append((2, folder))
    return found


def _make(folder: Path, version: int, limit: int) -> bool:
    memory, swap, _, _ = FILES[version]
    try:
        folder.mkdir()
        (folder / memory).write_text(str(limit))
        if (folder / swap).exists():  # version 1 limits memory and swap together
            (folder / swap).write_text(str(limit if version == 1 else 0))
        elif version == 1:  # swap is not accounted for
            (folder / "memory.swappiness").write_text("0")
    except OSError:  # not ours to write
        return False
    return True


def _systemd(limit: int) -> tuple[str, ...]:
    user = ("--user",) if os.geteuid() else ()
    limits = ("-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0")
    return ("systemd-run", *user, "--scope", "--quiet", *limits, "--")


def _is_in_force(prefix: tuple[str, ...], limit: int) -> bool:
    command = [*prefix, sys.executable, "-c", PROBE.format(limit)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _remove(folder: Path) -> None:
    """Kill what is left in the group, and remove it; the kernel lets go of it a little later."""
    for _ in range(50):
        if not folder.exists():
            return
        with suppress(OSError):
            for pid in (folder / "cgroup.procs").read_text().split():
                os.kill(int(pid), 9)
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)
