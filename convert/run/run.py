"""Plan → artifacts: packages made once, linked wherever they belong, finished or absent.

What `out` holds afterwards is described in the README under "What a run leaves". Everything in
`out/.cache` may be deleted; it is what makes a second run, or one that was killed, cheap.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Part
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.cache import Cache
from convert.files.disk import disk_error, link_tree
from convert.plan.estimate import estimate, require_room
from convert.plan.plan import Job, Plan, PlannedArtifact
from convert.process.progress import Advance, Progress, Silent, silent
from convert.run import manifest as manifests
from convert.run.packages import (
    Context,
    Package,
    PackageTask,
    Place,
    make,
    task_for,
    worker,
)
from convert.run.pool import run_tasks
from convert.source.download import Snapshot
from convert.tokenizer.app import app_files
from convert.units import size
from convert.weights import allocation as allocations

OURS = {".cache", "reports", "release"}


@dataclass(frozen=True)
class Result:
    """One artifact folder of a run."""

    path: Path
    manifest: Mapping[str, Any]
    fresh: bool  # made in this run, rather than found finished


def run(
    plan: Plan,
    source: Snapshot,
    out: Path,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Make every artifact of the plan in `out`; what is finished there already is left alone.

    Args:
        plan: what to make.
        source: where the checkpoint came from, for the manifest.
        out: the output folder; made if absent.
        jobs: worker processes; as many as help and fit into memory if None.

    Raises:
        InputError: `out` holds something else, the checkpoint does not fit, memory or disk will
            not do.
    """
    progress = progress or Silent()
    require_ours(out, plan)
    assert not plan.unmeasured, "mixed bits are measured before"
    assert plan.precision.value is not None, "the VAE's precision is measured before"
    try:
        with discard_unless(out), Cache(out / ".cache") as cache:
            context = _context(plan, source, cache, progress)
            tasks = [task_for(context, job, plan.weights[job.component]) for job in plan.jobs]
            missing = [task for task in tasks if not cache.has("packages", task.key)]
            unwritten = {task.weight_key: task for task in reversed(missing)}
            writers = [task for name, task in unwritten.items() if not cache.has("weights", name)]
            expected = estimate(plan, [t.job for t in missing], [t.job for t in writers])
            jobs = jobs or expected.workers
            require_room(out, expected, jobs)
            packages = _make_all(plan, context, cache, tasks, missing, writers, jobs, progress)
            return [
                _artifact(a, plan, context, packages, cache, out, progress) for a in plan.artifacts
            ]
    except OSError as error:
        raise disk_error(error, out) from None


@contextmanager
def discard_unless(out: Path, *kinds: str) -> Iterator[None]:
    """Remove a new folder where the input turns out to be unusable, but for dear entries.

    What an interrupt or another error ends stays: it can go on.

    Args:
        out: the output folder.
        kinds: of entries in its cache, any of which is worth keeping.
    """
    is_new = not out.exists()
    try:
        yield
    except InputError:
        if is_new and not any((out / ".cache" / kind).exists() for kind in kinds):
            shutil.rmtree(out, ignore_errors=True)
        raise


def require_ours(out: Path, plan: Plan | None = None) -> None:
    """Raise InputError if `out` holds what no run has put there, or more than the plan makes."""
    if out.exists() and not out.is_dir():
        raise InputError("is a file; a folder is expected", where=out)
    planned = {a.artifact.name: a for a in plan.artifacts} if plan else {}
    for entry in sorted(out.iterdir()) if out.exists() else []:
        if entry.name in OURS:
            continue
        manifest = manifests.read(entry)
        if manifest is None:
            raise InputError(
                f"holds `{entry.name}`, which no run has made; nothing was written",
                where=out,
                hint="Give --out a new or empty folder, or one that an earlier run has made.",
            )
        if entry.name in planned:
            lost = [c for c in manifest["components"] if c not in planned[entry.name].jobs]
            if lost:
                raise InputError(
                    f"has {', '.join(lost)} too, which this run would remove; nothing was written",
                    where=entry,
                    hint="Give --out another folder, or ask for these components as well.",
                )


def _context(plan: Plan, source: Snapshot, cache: Cache, progress: Progress) -> Context:
    """What the jobs share."""
    digests = checkpoint_digests(plan, source, cache, progress)
    return Context(
        checkpoint=plan.checkpoint,
        digests=digests,
        repo=source.repo,
        commit=source.commit,
        ingredients={what: Place(one.repo, one.commit) for what, one in source.ingredients.items()},
        license=plan.recipe.release.license,
        cache=cache.root,
    )


def checkpoint_digests(
    plan: Plan,
    source: Snapshot,
    cache: Cache,
    progress: Progress,
    *,
    whole: bool = False,
) -> dict[str, str]:
    """SHA-256 of the files that the jobs read, by path; the Hub's where it vouches for them.

    Args:
        whole: of all of the checkpoint's files, whatever the jobs are.
    """
    vouched = source.digests
    known = {n: vouched[path] for n, path in plan.checkpoint.files.items() if path in vouched}
    parts = plan.checkpoint.parts
    weights = _weight_files(parts.values())
    wanted = _weight_files(parts[COMPONENTS[job.component].part] for job in plan.jobs)
    files = {
        name: path
        for name, path in plan.checkpoint.files.items()
        if whole or path not in weights or path in wanted
    }
    unknown = {name: path for name, path in files.items() if name not in known}
    total = sum(path.stat().st_size for path in unknown.values())
    with progress.stage("Hashing the checkpoint", total, "B") as advance:
        found = cache.digests(unknown.values(), advance)
    known.update({name: found[path] for name, path in unknown.items()})
    source.require_digests({files[name]: known[name] for name in files})
    written = plan.checkpoint.document_digests()
    return {n: written.get(n) or known[n] for n in sorted({*files, *written})}


def _weight_files(parts: Iterable[Part]) -> set[Path]:
    return {file for part in parts for file in part.weight_files}


def _make_all(
    plan: Plan,
    context: Context,
    cache: Cache,
    tasks: list[PackageTask],
    missing: list[PackageTask],
    writers: list[PackageTask],
    jobs: int,
    progress: Progress,
) -> dict[Job, Package]:
    """Every package: first the weight writers, then those that share what these wrote."""
    first = [task for task in missing if task in writers]
    rest = [task for task in missing if task not in writers]
    packages = {t.job: make(context, cache, t, silent) for t in tasks if t not in missing}
    with progress.stage("Weights", sum(plan.weight_bytes[t.job] for t in first), "B") as advance:
        packages |= _report(_each(context, cache, first, jobs, advance), progress)
    with progress.stage("Graphs", len(rest), "models") as advance:
        for made in _each(context, cache, rest, jobs, silent):
            packages |= _report([made], progress)
            advance(1)
    return packages


def _each(
    context: Context, cache: Cache, tasks: list[PackageTask], count: int, advance: Advance
) -> Iterable[tuple[PackageTask, Package]]:
    if count > 1 and len(tasks) > 1:
        return run_tasks(partial(worker, context), tasks, count, advance)
    return ((task, make(context, cache, task, advance)) for task in tasks)


def _report(made: Iterable[tuple[PackageTask, Package]], progress: Progress) -> dict[Job, Package]:
    packages = {}
    for task, package in made:
        packages[task.job] = package
        if package.fresh:
            progress.done(f"  {task.job}: {size(sum(f['size'] for f in package.files.values()))}")
    return packages


def _artifact(
    planned: PlannedArtifact,
    plan: Plan,
    context: Context,
    packages: Mapping[Job, Package],
    cache: Cache,
    out: Path,
    progress: Progress,
) -> Result:
    """The artifact's folder, linked together from finished packages."""
    texts = app_files(plan.checkpoint.tokenizers)
    if (allocation := plan.allocations.get(planned.artifact.bits)) is not None:
        texts[allocations.FILE] = allocation.text()
    manifest = manifests.compose(planned, plan, context, packages, texts)
    path = out / planned.artifact.name
    found = manifests.read(path)
    same = found is not None and found["fingerprint"] == manifest["fingerprint"]
    if found is not None and same and manifests.is_complete(path, found):
        return Result(path, found, fresh=False)
    folder = cache.new_folder()
    for component, job in planned.jobs.items():
        link_tree(packages[job].path, folder / manifest["components"][component])
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    (folder / manifests.FILE).write_text(manifests.text(manifest), "utf-8")
    cache.replace(folder, path)
    total = sum(f["size"] for f in manifest["files"].values())
    progress.done(f"{planned.artifact.name}: {size(total)}")
    return Result(path, manifest, fresh=True)
