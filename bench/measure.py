"""Measure a command with all its children: time, CPU, and peak memory, anonymous and file pages.

How memory is sampled: every 50 ms, `/proc/PID/status` of the command and of every process that
descends from it or belongs to its session. RssAnon, RssFile and RssShmem are summed over the
processes, and the highest sums are kept. So a peak shorter than 50 ms can be missed, a page that
several processes map counts once for each, and pages of the page cache that no process maps (what
`read` and `write` go through) do not count. The kernel's counters may be some hundred kB behind.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.cgroup import CannotLimit, Limit
from convert.errors import CannotExecute

INTERVAL = 0.05  # seconds between samples
TAIL = 2000  # characters of stderr that are kept
RSS = re.compile(r"^Rss(Anon|File|Shmem):\s+(\d+) kB", re.M)


@dataclass(frozen=True)
class Memory:
    """Resident memory in bytes, summed over processes."""

    anonymous: int = 0  # heap and stacks
    file: int = 0  # pages of mapped files: the kernel can drop them and read them again
    shared: int = 0  # shared memory and tmpfs, which it can not

    @property
    def total(self) -> int:
        """Bytes of all kinds together."""
        return self.anonymous + self.file + self.shared

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.anonymous + other.anonymous, self.file + other.file, self.shared + other.shared
        )


@dataclass(frozen=True)
class Measured:
    """What one run of a command took. Seconds and bytes."""

    exit_code: int  # negative: the signal that ended it
    wall: float  # until it had exited
    synced: float  # until `sync` had written everything out after that
    cpu: float  # user and system, with the children that were waited for
    peak: int  # of anonymous, file and shared memory together
    peak_memory: Memory  # the peak of each kind, which need not fall on the same moment
    samples: int
    stdout: str
    stderr: str  # its end
    limited: str | None = None  # how memory was limited
    group_peak: int | None = None  # most bytes charged to the control group
    out_of_memory: bool = False  # the kernel killed a process of the control group

    @property
    def failure(self) -> str | None:
        """Why it did not succeed, in a line; None if it did."""
        if self.exit_code == 0 and not self.out_of_memory:
            return None
        if self.out_of_memory:
            return "killed: out of memory"
        lines = self.stderr.strip().splitlines() or ["nothing on stderr"]
        if self.exit_code < 0:
            return f"killed by {signal.Signals(-self.exit_code).name}"
        first_error = next((line for line in lines if line.startswith("error:")), lines[-1])
        return f"exit code {self.exit_code}: {first_error}"


def measure(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    limit: Limit | None = None,
    interval: float = INTERVAL,
) -> Measured:
    """Run a command to its end, and say what it took.

    It runs in a session of its own; what it leaves running there is killed.

    Args:
        command: program and arguments.
        env: replaces the environment.
        limit: of `memory_limit`; everything runs within it.
        interval: seconds between samples of memory.

    Raises:
        CannotExecute: not on Linux, or there is no such program.
        CannotLimit: the command could not join the control group.
    """
    if sys.platform != "linux":
        raise CannotExecute(
            f"measures on Linux only, and this is {sys.platform}",
            where="bench",
            hint="Memory is split into anonymous and file pages by Linux's /proc.",
        )
    kills = limit.kills if limit else 0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.sync()  # what others have written is not to be waited for at the end
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                [*(limit.prefix if limit else ()), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotExecute(f"cannot be run: {error.strerror}", where=command[0]) from None
        tree = _Tree(process.pid)
        try:
            _sample_until_exit(process.pid, tree, interval)
            wall = time.perf_counter() - start
        finally:
            # Not yet waited for, so its number is still its own, and the group's.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        os.sync()
        synced = time.perf_counter() - start
        result = Measured(
            exit_code=process.returncode,
            wall=wall,
            synced=synced,
            cpu=usage.ru_utime + usage.ru_stime,
            peak=tree.peak,
            peak_memory=tree.peak_memory,
            samples=tree.samples,
            stdout=_end(out, None),
            stderr=_end(err, TAIL),
            limited=limit.how if limit else None,
            group_peak=limit.peak if limit else None,
            out_of_memory=bool(limit and limit.kills > kills),
        )
    if limit and limit.folder and result.exit_code == 125:
        raise CannotLimit(f"not possible here: {result.stderr.strip()}")
    return result


def _sample_until_exit(pid: int, tree: _Tree, interval: float) -> None:
    """A file descriptor of the process wakes us at its end: no time is lost by polling."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            tree.sample()
            if poll.poll(interval * 1000):
                return
    finally:
        os.close(descriptor)


class _Tree:
    """A process with its descendants, and the highest sums of their memory."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.members = {root}
        self.others: set[int] = set()  # what has been looked at is not looked at again
        self.peak = 0
        self.peak_memory = Memory()
        self.samples = 0

    def sample(self) -> None:
        self._find()
        now = Memory()
        for pid in self.members:
            now += _memory(pid)
        high = self.peak_memory
        self.peak = max(self.peak, now.total)
        self.peak_memory = Memory(
            max(high.anonymous, now.anonymous),
            max(high.file, now.file),
            max(high.shared, now.shared),
        )
        self.samples += 1

    def _find(self) -> None:
        alive = {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208
        self.members &= alive
        self.others &= alive
        # Parents come before children by number, except after the numbers have wrapped.
        for pid in sorted(alive - self.members - self.others):
            parent, session = _parent_and_session(pid)
            ours = parent in self.members or session == self.root
            (self.members if ours else self.others).add(pid)


def _parent_and_session(pid: int) -> tuple[int, int]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:  # gone meanwhile
        return 0, 0
    # The name of the program stands in brackets and may hold anything.
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), int(fields[3])


def _memory(pid: int) -> Memory:
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return Memory()
    found = {kind: int(kib) * 1024 for kind, kib in RSS.findall(text)}
    return Memory(found.get("Anon", 0), found.get("File", 0), found.get("Shmem", 0))


def _end(file: IO[str], characters: int | None) -> str:
    file.seek(0)
    text = file.read()
    return text if characters is None else text[-characters:]
