"""What a run will take: bytes, seconds, memory; from headers alone, before it starts.

The constants were measured on two cores of a small cloud machine; `make bench` compares the
predictions with what happens.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.errors import InputError
from convert.lora.merge import MergedTensor
from convert.networks.attention import ops_within
from convert.plan.plan import Job, Plan
from convert.process.memory import cgroup_limit, physical_memory
from convert.units import size

# Of graphs without what is in their attentions; within 8 % for every component of SDXL, and of the
# tiny checkpoints that the tests make of its relatives.
OPS_PER_TENSOR = 4  # of those that are no matrices
OTHER_OPS = 28
BYTES_PER_OP = 330  # of model.mlmodel, constants included
SECONDS_PER_OP = 160e-6  # to build and serialise
BYTES_PER_OP_IN_ARCHIVE = 35  # of a compiled model's texts, deflated
BYTES_PER_OP_IN_MEMORY = 6_800
START_SECONDS = 3.5  # to import coremltools
START_BYTES = 260_000_000
PARENT_BYTES = 35_000_000  # of the process that only waits for workers
WEIGHTS_PER_SECOND = 300e6  # read, checked, hashed and written
# Palettes: a fit takes as long for a large tensor as for a small one, and is quicker for a group.
FIT_SECONDS = {"8": 0.070, "6": 0.026, "4": 0.012, "3": 0.012, "2": 0.007, "1": 0.006}
GROUP_SECONDS = {"8": 0.063, "6": 0.015, "4": 0.004, "3": 0.004, "2": 0.003, "1": 0.003}
PALETTIZED_PER_SECOND = 180e6  # weights that are counted, looked up and packed
QUANTIZED_PER_SECOND = 150e6  # weights to integers and their scales
# LoRAs, measured by `python -m bench.sources.loras`: of whatever kind, a change costs little beside
# the way to float32 and back, which a weight goes once for all of them.
MERGED_PER_SECOND = 240e6
CHANGED_PER_SECOND = 1.2e9
# Below this, worker processes cost more than they save: each imports coremltools.
WORTH_WORKERS = 20.0  # seconds of building graphs, merging and fitting palettes


@dataclass(frozen=True)
class Estimate:
    """What making some packages takes."""

    bytes: int  # on disk, hard links counted once
    weight_bytes: int  # of which weights
    graph_seconds: float  # of one process
    compute_seconds: float  # of one process, to merge LoRAs and to compress
    longest_seconds: float  # the same of one weight file, which one process writes
    memory_bytes: int  # anonymous, of one process at its peak
    parallel: bool  # whether there are several graphs to build at once

    @property
    def workers(self) -> int:
        """Processes that help, and that the machine has cores and memory for."""
        if not self.parallel or self.graph_seconds + self.compute_seconds < WORTH_WORKERS:
            return 1
        fitting = (available_memory() or 1 << 60) // self.memory_bytes - 1
        return max(1, min(os.cpu_count() or 1, fitting))

    def peak_memory(self, workers: int) -> int:
        """Anonymous memory in bytes of all processes at their peak."""
        return self.memory_bytes * workers + (PARENT_BYTES if workers > 1 else 0)

    def seconds(self, workers: int) -> float:
        """Wall time with so many processes."""
        if not self.bytes:
            return 0.0
        starts = START_SECONDS * (2 if workers > 1 else 1)
        writing = self.weight_bytes / WEIGHTS_PER_SECOND
        computing = max(self.longest_seconds, self.compute_seconds / workers)
        return starts + writing + computing + self.graph_seconds / workers


def estimate(plan: Plan, jobs: Sequence[Job], writers: Sequence[Job] | None = None) -> Estimate:
    """What the packages of `jobs` take; with all of a plan's jobs, what the whole plan takes.

    Args:
        writers: those of the jobs that write weight files; of equal ones the first if None.
    """
    ops = [count_ops(plan, job) for job in jobs]
    if writers is None:
        writers = list({job.weights: job for job in jobs}.values())
    weights = sum(plan.weight_bytes[job] for job in writers)
    computing = [merge_seconds(plan, job) + compress_seconds(plan, job) for job in writers]
    return Estimate(
        bytes=weights + sum(ops) * BYTES_PER_OP,
        weight_bytes=weights,
        graph_seconds=sum(ops) * SECONDS_PER_OP,
        compute_seconds=sum(computing),
        longest_seconds=max(computing, default=0.0),
        memory_bytes=START_BYTES + max(ops, default=0) * BYTES_PER_OP_IN_MEMORY,
        parallel=len(jobs) > 1,
    )


def archive_bytes(plan: Plan) -> dict[str, int]:
    """About how large each artifact's archive is, by name: weights are stored as they are."""
    ops = {job: count_ops(plan, job) for job in plan.jobs}
    return {
        planned.artifact.name: sum(
            plan.weight_bytes[job] + ops[job] * BYTES_PER_OP_IN_ARCHIVE
            for job in planned.jobs.values()
        )
        for planned in plan.artifacts
    }


def require_room(out: Path, expected: Estimate, workers: int) -> None:
    """Raise InputError if the disk of `out` or the memory will not do, saying how much lacks."""
    free = shutil.disk_usage(out).free
    if expected.bytes > free:
        raise InputError(
            f"no space: {size(expected.bytes)} to write, {size(free)} free",
            where=out,
            hint=f"Free {size(expected.bytes - free)}, or give --out a folder on another disk.",
        )
    needed, available = expected.peak_memory(workers), available_memory()
    if expected.bytes and available is not None and needed > available:
        raise InputError(
            f"not enough memory: {size(needed)} for {workers} processes, "
            f"{size(available)} available",
            hint=f"Free {size(needed - available)}"
            + (", or give --jobs 1." if workers > 1 else " or use a larger machine."),
        )


def available_memory() -> int | None:
    """Bytes that this process may still take; None if the system does not say."""
    total, available = physical_memory()
    limits = [n for n in (available or total, cgroup_limit()) if n is not None]
    return min(limits, default=None)


def merge_seconds(plan: Plan, job: Job) -> float:
    """How long one process takes to merge LoRAs into the weights of a job, once."""
    tensors = plan.weights[job.component].tensors.values()
    merged = [tensor for tensor in tensors if isinstance(tensor, MergedTensor)]
    changed = sum(tensor.size * len(tensor.changes) for tensor in merged)
    size = sum(tensor.size for tensor in merged)
    return size / MERGED_PER_SECOND + changed / CHANGED_PER_SECOND


def compress_seconds(plan: Plan, job: Job) -> float:
    """How long one process takes to compress the weights of a job, without reading and writing."""
    tensors = plan.weights[job.component].tensors
    total = 0.0
    for name, method in job.compression.methods:
        shape, size = tensors[name].shape, tensors[name].size
        if method.bits not in FIT_SECONDS:
            total += size / QUANTIZED_PER_SECOND
            continue
        groups = shape[0] // method.group_size if method.group_size is not None else None
        fits = FIT_SECONDS[method.bits] if groups is None else groups * GROUP_SECONDS[method.bits]
        total += fits + size / PALETTIZED_PER_SECOND
    return total


def count_ops(plan: Plan, job: Job) -> int:
    """About how many ops the graph of a job has, constants included.

    Every layer has a bias or a norm, or is a convolution, so these tensors tell how many layers
    there are; only the ops within attentions depend on heads and resolution, too.
    """
    tensors = plan.weights[job.component].tensors
    layers = sum(len(tensor.shape) != 2 for tensor in tensors.values())
    return OTHER_OPS + OPS_PER_TENSOR * layers + _attention_ops(plan, job, tensors)


def _attention_ops(plan: Plan, job: Job, names: Iterable[str]) -> int:
    """Ops within the attentions of a UNet, of which each has a `to_q`."""
    if job.attention is None or job.resolution is None:
        return 0
    config, (height, width) = plan.checkpoint.unet, plan.checkpoint.vae.latent_size(job.resolution)
    levels = Counter(config.level(name) for name in names if name.endswith(".to_q.weight"))
    return sum(
        count * ops_within(job.attention, config.heads[level], height * width // 4**level)
        for level, count in levels.items()
    )
