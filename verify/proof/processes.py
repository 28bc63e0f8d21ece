"""Tasks done by as many processes as help and fit into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from convert.files.cache import Cache
from convert.plan.estimate import available_memory
from convert.process.progress import Progress
from convert.run.pool import run_tasks
from verify.proof.keep import found
from verify.proof.steps import steps
from verify.proof.tasks import ProofContext, ProofTask, TaskKind
from verify.proof.work import Bench, worker

LARGE = 1 << 27  # weights of a checkpoint, from which on processes are worth their start
START_BYTES = 600_000_000  # of a process with PyTorch and diffusers
SHARE = 0.5  # of the memory that is available
# Anonymous memory of a task, in bytes for each weight of the largest network.
BYTES_PER_WEIGHT: dict[TaskKind, float] = {
    "artifact": 0.0,
    "package": 0.3,
    "recording": 2.0,
    "decoded": 2.5,
    "numbers": 1.5,
    "traces": 4.0,
    "pictures": 2.0,
}


def do_all(
    context: ProofContext, cache: Cache, tasks: Sequence[ProofTask], name: str, progress: Progress
) -> None:
    """Do the tasks whose findings are not there yet.

    Raises:
        CannotExecute, InputError: what looks right cannot be read or run.
    """
    missing = [task for task in tasks if not _is_done(cache, task)]
    if not missing:
        return
    count = processes(context, missing)
    unit = "packages" if missing[0].kind == "package" else "steps"
    total = sum(steps(context, task) for task in missing)
    with progress.stage(name, total, unit) as advance:
        if count > 1:
            threads = max(1, (os.cpu_count() or 1) // count)
            start = partial(worker, context, threads)
            for _ in run_tasks(start, missing, count, advance):
                pass
        else:
            bench = Bench(context, cache)
            for task in missing:
                bench.do(task, advance)


def processes(context: ProofContext, tasks: Sequence[ProofTask]) -> int:
    """How many of them help: one for a small checkpoint, whose tasks take no time."""
    source = context.checkpoint
    sizes = [sum(t.size for t in source.component_tensors(c).values()) for c in context.components]
    if sum(sizes) < LARGE:
        return 1
    needed = START_BYTES + max(BYTES_PER_WEIGHT[task.kind] for task in tasks) * max(sizes)
    fitting = int((available_memory() or 1 << 60) * SHARE / needed)
    return max(1, min(os.cpu_count() or 1, fitting, len(tasks)))


def _is_done(cache: Cache, task: ProofTask) -> bool:
    if task.kind == "recording":
        return cache.has("recordings", task.key)
    if task.kind == "traces":
        return cache.has("traces", task.key)
    return found(cache, task.key) is not None
