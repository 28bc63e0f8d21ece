"""Run the tasks in turn, from the same state of page cache and disk, and keep what they took."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cgroup import CannotLimit, memory_limit
from bench.machine import empty_page_cache
from bench.measure import Measured, measure
from bench.tasks import COMMAND, Setup, Task
from convert.process.progress import Say
from convert.run import manifest as manifests

LEFT_AS_IT_IS = "left as it was"
WEIGHTS, GRAPH = "weight.bin", "model.mlmodel"


@dataclass(frozen=True)
class Disk:
    """What a task has left on the disk, in bytes; a file with several names counts once."""

    allocated: int  # as `du` counts it, the tool's cache included
    weights: int  # of the weight files
    linked: int  # of all files, as if each name were a copy
    artifact_weights: int  # the weight files of one artifact
    artifacts: int


@dataclass
class Row:
    """A task with each of its runs."""

    task: Task
    runs: list[Measured] = field(default_factory=list)
    disk: Disk | None = None
    problem: str | None = None  # why there is no figure
    packages: dict[str, str] = field(default_factory=dict)  # SHA-256 of their files, by path


@dataclass(frozen=True)
class Measurements:
    """All rows of one run of the bench."""

    rows: Sequence[Row]
    page_cache: str  # what was done to it before each
    plan: dict[str, Any] | None  # of the matrix, as `plan --json` prints it
    interval: float  # seconds between samples of memory


def run_tasks(
    setup: Setup,
    tasks: Sequence[Task],
    *,
    repeat: int,
    interval: float,
    cold: bool,
    say: Say,
) -> Measurements:
    """Run tasks `repeat` times, in rounds: what else the machine does then falls on all alike.

    Args:
        cold: empty the page cache before each; else it is left alone.
        interval: seconds between samples of memory.
        say: gets a line for each run that has ended.
    """
    rows = [Row(task) for task in tasks]
    page_cache = LEFT_AS_IT_IS
    needed = {task.after for task in tasks}
    try:
        for left in range(repeat, 0, -1):
            for row in rows:
                if any(r.problem for r in rows if r.task.name == row.task.after):
                    row.problem = f"not run: it goes on from {row.task.after}"
                if row.problem is not None or left > (row.task.rounds or repeat):
                    continue
                if row.task.after is None:
                    shutil.rmtree(row.task.out, ignore_errors=True)
                if cold:
                    page_cache = empty_page_cache(setup.files)
                say(_run(row, interval))
                if row.task.name not in needed:
                    shutil.rmtree(row.task.out, ignore_errors=True)
    finally:
        for row in rows:
            shutil.rmtree(row.task.out, ignore_errors=True)
    return Measurements(rows, page_cache, _plan(setup, rows), interval)


def _run(row: Row, interval: float) -> str:
    task = row.task
    try:
        with ExitStack() as stack:
            limit = stack.enter_context(memory_limit(task.limit)) if task.limit else None
            measured = measure(task.command, limit=limit, interval=interval)
    except CannotLimit as error:
        row.problem = error.problem
        return f"{task.name}: {error}"
    row.problem = measured.failure
    row.runs.append(measured)
    row.disk = disk_use(task.out)
    row.packages = package_digests(task.out)
    outcome = row.problem or f"{measured.wall:.1f} s"
    return f"{task.name}: {outcome}"


def disk_use(folder: Path) -> Disk:
    """What a folder takes on the disk; artifacts are the folders in it that hold packages."""
    blocks: dict[tuple[int, int], int] = {}
    weights: dict[tuple[int, int], int] = {}
    linked = 0
    by_artifact: dict[str, int] = {}
    for path in _entries(folder):
        stat = path.lstat()
        identity = (stat.st_dev, stat.st_ino)
        blocks[identity] = stat.st_blocks * 512
        if path.is_dir() or path.is_symlink():
            continue
        name = path.relative_to(folder).parts[0]
        if name != ".cache":
            linked += stat.st_size
        if path.name == WEIGHTS:
            weights[identity] = stat.st_size
            if name != ".cache":
                by_artifact[name] = by_artifact.get(name, 0) + stat.st_size
    return Disk(
        allocated=sum(blocks.values()),
        weights=sum(weights.values()),
        linked=linked,
        artifact_weights=max(by_artifact.values(), default=0),
        artifacts=len(by_artifact),
    )


def package_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of weights and graphs in the artifacts of a run, by their path in the artifact."""
    found: dict[str, str] = {}
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        files = (manifests.read(entry) or {}).get("files", {})
        found |= {n: f["sha256"] for n, f in files.items() if n.endswith((WEIGHTS, GRAPH))}
    return found


def _entries(folder: Path) -> Iterator[Path]:
    for parent, _, files in os.walk(folder):
        yield Path(parent)
        yield from (Path(parent, name) for name in files)


def _plan(setup: Setup, rows: Sequence[Row]) -> dict[str, Any] | None:
    """What `plan` says of the matrix, if that was measured; None if it says nothing."""
    if not any(row.task.name == "matrix" and row.runs for row in rows):
        return None
    recipe = setup.folder / "matrix.toml"
    recipe.write_text(setup.recipe_text, "utf-8")
    command = [*COMMAND, "plan", str(recipe), "--source", str(setup.checkpoint), "--json"]
    planned = measure(command)
    if planned.exit_code:
        return None
    document: dict[str, Any] = json.loads(planned.stdout)
    return document
