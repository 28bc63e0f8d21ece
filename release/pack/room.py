"""Room on the disk for archives, which are copies, unlike the artifacts that they are made of."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from convert.errors import InputError
from convert.plan.estimate import archive_bytes, estimate
from convert.plan.plan import Plan
from convert.run import manifest as artifact_manifests
from convert.units import size


class NoRoom(InputError):
    """The archives of a release do not fit on the disk."""


@dataclass(frozen=True)
class Room:
    """What a run has to write, and the room there is for it.

    Attributes:
        archives: bytes of the archives that are not there yet, about.
        artifacts: bytes of the packages that are not there yet, about.
        free: bytes.
    """

    archives: int
    artifacts: int
    free: int

    @property
    def will_do(self) -> bool:
        """Whether the archives fit on the disk, too."""
        return self.archives == 0 or self.archives + self.artifacts <= self.free

    def __str__(self) -> str:
        """What a person wants to know before the run starts."""
        text = (
            f"The release's archives, which are copies, take about {size(self.archives)} more; "
            f"{size(self.free)} are free"
        )
        if self.will_do:
            return text + "."
        before = f", and the artifacts take {size(self.artifacts)} first" if self.artifacts else ""
        return (
            f"{text}{before}. A run goes on without archives, and ends with the command that "
            "releases without room for them."
        )


def room_for(plan: Plan, out: Path) -> Room:
    """The room that a plan takes in an output folder, its release included."""
    made = [a for a in plan.artifacts if artifact_manifests.read_artifact(out / a.artifact.name)]
    there = {job for a in made for job in a.jobs.values()}
    files = {job.weights for job in there}
    missing = [job for job in plan.jobs if job not in there]
    writers = {job.weights: job for job in missing if job.weights not in files}
    archives = [
        count
        for name, count in archive_bytes(plan).items()
        if not any((out / "release" / f"{name}.zip{part}").is_file() for part in ("", ".001"))
    ]
    return Room(
        archives=sum(archives),
        artifacts=estimate(plan, missing, list(writers.values())).bytes,
        free=free_at(out),
    )


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
