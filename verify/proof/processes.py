"""Tasks done by as many processes as help and fit into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from convert.files.cache import Cache
from convert.process.progress import Progress
from convert.run.pool import run_tasks
from verify.proof.estimate import processes
from verify.proof.keep import found
from verify.proof.pieces import ProofPiece, weights_of
from verify.proof.steps import steps
from verify.proof.tasks import ProofContext, ProofTask
from verify.proof.work import Bench, worker


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
    count = processes(context.checkpoint, [piece_of(context, task) for task in missing])
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


def piece_of(context: ProofContext, task: ProofTask) -> ProofPiece:
    """What a task takes memory for."""
    member, executed = task.member, task.execution
    components: tuple[str, ...] = (member.component,)
    if task.kind == "recording":
        components = context.recorded(own=task.own)
    elif task.kind in ("artifact", "traces", "pictures"):
        components = context.components
    decoded = {}
    if member.is_compressed:
        decoded = {name: weights_of(context.checkpoint, name) for name in components}
    size = member.resolution if executed is None else executed.size
    return ProofPiece(
        task.kind,
        components,
        size,
        decoded=tuple(decoded.items()),
        attention=member.attention,
        own=task.own,
    )


def _is_done(cache: Cache, task: ProofTask) -> bool:
    if task.kind == "recording":
        return cache.has("recordings", task.key)
    if task.kind == "traces":
        return cache.has("traces", task.key)
    return found(cache, task.key) is not None
