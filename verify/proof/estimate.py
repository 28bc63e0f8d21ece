"""How long verifying what a plan makes will take, for each effort; from headers alone.

The pieces are those that `verify.proof.prove` finds once the packages are there.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import CannotExecute
from convert.plan.estimate import (
    FIT_SECONDS,
    GROUP_SECONDS,
    available_memory,
    count_ops,
)
from convert.plan.plan import Job, Plan
from convert.units import duration
from convert.values import EFFORTS, Effort, Resolution
from verify.equivalence.sizes import constant_integers, small_size_for, step
from verify.proof.pieces import ProofPiece, memory_of, work_of

LARGE = 1 << 27  # weights of a checkpoint, from which on processes are worth their start
SHARE = 0.4  # of the memory that is available
START_SECONDS = 4.5  # of a core, to import PyTorch, diffusers and coremltools
SHARED = 0.93  # of its work that a further thread takes from the first one
SMALL_STEPS, ALL_STEPS = 3, 6  # timesteps at a small size, and of effort thorough
ENTRIES = {1 << bits for bits in range(1, 9)}  # as in `verify.proof.scheme`
SMALLEST = Resolution(64, 64)
AFRESH = 0.6  # of the steps of text-to-image, that image-to-image takes
COMPARED, PICTURES = {"conversion", "compression"}, {"generation", "sanity"}  # levels


def verify_seconds(plan: Plan) -> dict[Effort, float]:
    """Wall time of verifying everything in the plan on this machine, nothing being known yet."""
    return {effort: round(sum(_stages(plan, effort)), 1) for effort in EFFORTS}


def efforts_shown(plan: Plan, seconds: dict[Effort, float], asked: Effort | None = None) -> str:
    """The same in a line for people, the effort that is asked for first; the plan's if None."""
    own = asked or plan.recipe.verify.effort
    others = ", ".join(f"{name} {duration(n)}" for name, n in seconds.items() if name != own)
    return f"Verifying takes about {duration(seconds[own])} at effort {own} ({others})"


def processes(source: Checkpoint, pieces: Sequence[ProofPiece]) -> int:
    """How many processes help with these pieces: as many as there are cores, and memory for.

    One for a small checkpoint, whose pieces take no time.
    """
    if sum(part.size for part in source.parts.values()) < LARGE:
        return 1
    room = (available_memory() or 1 << 60) * SHARE
    needed = sorted((memory_of(source, piece) for piece in pieces), reverse=True)
    count = min(os.cpu_count() or 1, len(needed))
    while count > 1 and sum(needed[:count]) > room:
        count -= 1
    return max(1, count)


def _stages(plan: Plan, effort: Effort) -> Iterator[float]:
    """Wall time of each stage, one after the other."""
    yield START_SECONDS
    for pieces in stages(plan, effort).values():
        yield _wall(plan.checkpoint, pieces)


def _wall(source: Checkpoint, pieces: Sequence[ProofPiece]) -> float:
    """Wall time of pieces that processes share out among them, one at a time each."""
    if not pieces:
        return 0.0
    count, cores = processes(source, pieces), os.cpu_count() or 1
    threads = max(1, cores // count)
    shared = 1 + (threads - 1) * SHARED
    busy = [START_SECONDS if count > 1 else 0.0] * count
    for work in (work_of(source, piece) for piece in pieces):  # whoever is free takes the next
        heapq.heapreplace(busy, busy[0] + work.serial + work.wide / shared)
    return max(busy)


def stages(plan: Plan, effort: Effort) -> dict[str, list[ProofPiece]]:
    """What has to be done, by stage, in the order of `verify.proof.prove`."""
    levels = set(plan.recipe.verify.levels)
    small = _small_size(plan) if effort != "thorough" and "graph" in levels else None
    found = {"looks": [*_looks(plan, effort, small)]}
    if levels & COMPARED:
        found |= _executed(plan, effort, small)
    if levels & PICTURES:
        found |= _pictured(plan)
    return found


@dataclass(frozen=True)
class _Planned:
    """How a job's numbers are had; equal ones are had once."""

    job: Job
    size: Resolution
    steps: int
    own: bool = False


def _executed(plan: Plan, effort: Effort, small: Resolution | None) -> dict[str, list[ProofPiece]]:
    numbers: dict[object, _Planned] = {}
    decoded: dict[object, _Planned] = {}
    sized = (job for a in plan.artifacts for job in a.jobs.values() if job.resolution is not None)
    text_size = next((_at(job, effort, small, plan)[0] for job in sized), small or SMALLEST)
    for planned in plan.artifacts:
        bits = planned.artifact.bits  # which a package claims, compressed or not
        for job in planned.jobs.values():
            size, probed = _at(job, effort, small, plan)
            size = text_size if job.resolution is None else size
            one = _Planned(job, size, ALL_STEPS if effort == "thorough" else SMALL_STEPS)
            numbers.setdefault((_program(job) if probed else job, bits, size), one)
            if job.compression.methods:
                decoded.setdefault((job.weights, size), one)
    looks = _true_looks(plan, small) if effort == "standard" else []
    recordings = [_recording(plan, size, steps) for size, steps in _sizes(numbers.values())]
    recordings += list({(j.size, o): _own_recording(plan, j.size, o) for j, o in looks}.values())
    executed = [*numbers.values(), *(look for look, _ in looks)]
    return {
        "recordings": recordings,
        "decoded": [_piece("decoded", plan, one) for one in decoded.values()],
        "numbers": [_piece("numbers", plan, one) for one in executed],
    }


def _sizes(planned: Iterable[_Planned]) -> dict[tuple[Resolution, int], None]:
    return dict.fromkeys((one.size, one.steps) for one in planned)


def _true_looks(
    plan: Plan, small: Resolution | None
) -> list[tuple[_Planned, tuple[tuple[str, int], ...]]]:
    """What is executed at its true size, and the decoded weights of its artifact."""
    groups: dict[tuple[str, str | None], list[tuple[Job, dict[str, Job]]]] = {}
    for planned in plan.artifacts:
        for job in planned.jobs.values():
            if _at(job, "standard", small, plan)[1]:
                groups.setdefault((job.component, job.attention), []).append((job, planned.jobs))
    looks = []
    for group in groups.values():
        job, jobs = max(group, key=lambda one: _bytes(plan, one[1]))
        assert job.resolution is not None
        looks.append((_Planned(job, job.resolution, 1, own=True), _decoded_of(plan, jobs.values())))
    return looks


def _bytes(plan: Plan, jobs: Mapping[str, Job]) -> int:
    return sum(plan.weight_bytes[job] for job in jobs.values())


def _own_recording(
    plan: Plan, size: Resolution, decoded: tuple[tuple[str, int], ...]
) -> ProofPiece:
    sized = tuple(c for c in plan.artifacts[0].jobs if COMPONENTS[c].has_resolution)
    kept = tuple((c, n) for c, n in decoded if c in sized)
    piece = ProofPiece("recording", sized, size, half=_half(plan), decoded=kept)
    return replace(piece, own=bool(kept))


def _recording(plan: Plan, size: Resolution, steps: int) -> ProofPiece:
    return ProofPiece("recording", tuple(plan.artifacts[0].jobs), size, steps, _half(plan))


def _piece(kind: str, plan: Plan, one: _Planned) -> ProofPiece:
    job = one.job
    at = replace(job, resolution=one.size) if job.resolution is not None else job
    return ProofPiece(
        kind,
        (job.component,),
        one.size,
        one.steps,
        _half(plan),
        _decoded_of(plan, [job]),
        _fit_seconds(plan, job),
        count_ops(plan, at),
        job.attention,
    )


def _looks(plan: Plan, effort: Effort, small: Resolution | None) -> Iterator[ProofPiece]:
    """Levels structure, weights and graph; each weight file is read once, each probe made once."""
    levels, seen = set(plan.recipe.verify.levels), set[object]()
    for planned in plan.artifacts:
        for job in planned.jobs.values():
            if (planned.artifact.bits, job) in seen:
                continue
            _, probed = _at(job, effort, small, plan)
            yield ProofPiece(
                "package",
                (job.component,),
                decoded=_decoded_of(plan, [job]),
                ops=count_ops(plan, job),
                bytes=plan.weight_bytes[job] if job.weights not in seen else 0,
                probe="graph" in levels and not (probed and _program(job) in seen),
            )
            seen |= {job.weights, _program(job), (planned.artifact.bits, job)}
    if "structure" in levels:
        for planned in plan.artifacts:
            own = {job.weights: plan.weight_bytes[job] for job in planned.jobs.values()}
            new = sum(count for weights, count in own.items() if ("hashed", weights) not in seen)
            yield ProofPiece("artifact", tuple(planned.jobs), bytes=new)
            seen |= {("hashed", weights) for weights in own}


def _pictured(plan: Plan) -> dict[str, list[ProofPiece]]:
    asked = plan.recipe.verify
    kinds = 1 + AFRESH * ("vae_encoder" in plan.artifacts[0].jobs)
    steps = round(asked.steps * len(asked.prompts) * kinds)
    sizes = dict.fromkeys(a.artifact.resolution for a in plan.artifacts)
    components = tuple(plan.artifacts[0].jobs)
    return {
        "traces": [ProofPiece("traces", components, size, steps) for size in sizes],
        "pictures": [
            ProofPiece(
                "pictures",
                components,
                planned.artifact.resolution,
                steps,
                decoded=_decoded_of(plan, planned.jobs.values()),
                ops=sum(count_ops(plan, job) for job in planned.jobs.values()),
                attention=planned.artifact.attention,
            )
            for planned in plan.artifacts
        ],
    }


def _at(job: Job, effort: Effort, small: Resolution | None, plan: Plan) -> tuple[Resolution, bool]:
    """The size that a job is executed at, and whether another program stands for it there."""
    size = job.resolution
    if size is None:
        return small or SMALLEST, False
    is_small = small is None or size.width * size.height <= small.width * small.height
    if effort == "thorough" or is_small or job.engine != "native":
        return size, False
    assert small is not None
    return small, True


def _program(job: Job) -> object:
    """What equal jobs have one small program for."""
    return job.weights, job.attention


def _small_size(plan: Plan) -> Resolution | None:
    """The size that stands for those of the plan; of unlike ones, that of the first."""
    source = plan.checkpoint
    sizes = dict.fromkeys(a.artifact.resolution for a in plan.artifacts)
    first = next(iter(sizes))
    alike = [s for s in sizes if (s.width - first.width) % step(source) == 0]
    alike = [s for s in alike if (s.height - first.height) % step(source) == 0]
    components = [c for c in plan.artifacts[0].jobs if COMPONENTS[c].has_resolution]
    taken = {c: constant_integers(c, source) | ENTRIES for c in components}
    try:
        return small_size_for(source, {(c, size): taken[c] for c in components for size in alike})
    except CannotExecute:
        return None


def _half(plan: Plan) -> tuple[str, ...]:
    jobs = plan.artifacts[0].jobs.items()
    return tuple(component for component, job in jobs if job.precision == "float16")


def _decoded_of(plan: Plan, jobs: Iterable[Job]) -> tuple[tuple[str, int], ...]:
    """How many weights of each component are stored compressed."""
    found = {}
    for job in jobs:
        tensors = plan.weights[job.component].tensors
        found[job.component] = sum(tensors[name].size for name, _ in job.compression.methods)
    return tuple((name, count) for name, count in found.items() if count)


def _fit_seconds(plan: Plan, job: Job) -> float:
    """How long it takes to fit the palettes that those of a job are compared with."""
    total = 0.0
    for name, method in job.compression.methods:
        if method.bits in FIT_SECONDS and method.group_size is None:
            total += FIT_SECONDS[method.bits]
        elif method.bits in FIT_SECONDS and method.group_size is not None:
            shape = plan.weights[job.component].tensors[name].shape
            total += shape[0] // method.group_size * GROUP_SECONDS[method.bits]
    return total
