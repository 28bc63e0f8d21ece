"""One job → one finished package in the cache; the part of a run that worker processes do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convert import __version__
from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.pipeline import user_metadata
from convert.components import COMPONENTS
from convert.files.cache import Cache, key_of
from convert.files.disk import digest_file
from convert.plan.plan import Job
from convert.process.code import code_digest
from convert.process.interrupts import deferred_interrupt
from convert.process.progress import Advance
from convert.weights.compress import ComponentWeights

FOLDER = "model.mlpackage"
ABOUT = (
    "Stable Diffusion generates images conditioned on text and/or other images as input through "
    "the diffusion process. Please refer to https://arxiv.org/abs/2112.10752 for details."
)


@dataclass(frozen=True)
class Place:
    """The Hub repo and commit that an ingredient of a checkpoint comes from; None of others."""

    repo: str | None
    commit: str | None


@dataclass(frozen=True)
class Context:
    """What all jobs of a run share; goes to worker processes as it is."""

    checkpoint: Checkpoint
    digests: Mapping[str, str]  # SHA-256 of the checkpoint's files, by path in it
    repo: str | None
    commit: str | None
    license: str | None
    cache: Path
    ingredients: Mapping[str, Place] = field(default_factory=dict)  # as `Snapshot` has them


@dataclass(frozen=True)
class PackageTask:
    """A job as a process does it, with all that is known of its package beforehand.

    Attributes:
        about: what the model says of itself.
        weights: how many numbers that the component has learned.
        key: the package's name in the cache: all that determines its bytes.
        weight_key: that of its weight file.
    """

    job: Job
    about: Mapping[str, Any]
    weights: int
    key: str
    weight_key: str


@dataclass(frozen=True)
class Package:
    """A finished package."""

    path: Path
    files: Mapping[str, Mapping[str, Any]]  # size and sha256, by path in the package
    bits_per_weight: float
    fresh: bool  # made now, rather than found


def worker(context: Context) -> Any:
    """What a worker process does: a function of a task and of how to report its progress."""
    cache = Cache(context.cache).__enter__()  # left to the next cache if the process is killed
    return partial(make, context, cache)


def task_for(context: Context, job: Job, weights: ComponentWeights) -> PackageTask:
    """The task of a job; `weights` are its component's."""
    about = _about(context, job)
    digests = context.digests
    sources = [  # what it reads: the digests of the configs, and its tensors
        {name: digest for name, digest in digests.items() if name.endswith("config.json")},
        context.checkpoint.tensor_keys(job.component, digests),
    ]
    code = code_digest("apple" if job.engine == "apple" else "convert")
    settings = {
        **vars(job),
        "resolution": str(job.resolution),
        "compression": job.compression.to_json(),
    }
    component, compression, precision, deployment = job.weights
    written = [component, compression.to_json(), precision, deployment]
    return PackageTask(
        job,
        about,
        sum(tensor.size for tensor in weights.tensors.values()),
        key_of([settings, about, sources, code]),
        key_of([written, sources, code]),
    )


def make(context: Context, cache: Cache, task: PackageTask, advance: Advance) -> Package:
    """The package of a task, from the cache or made now; `advance` is told the weights' bytes."""
    fresh = False

    def fill(folder: Path) -> dict[str, Any]:
        nonlocal fresh
        fresh = True
        target = folder / FOLDER
        known = _convert(context, cache, task, target, advance)
        return _facts(task, target, known)

    path, facts = cache.entry("packages", task.key, fill)
    return Package(path / FOLDER, facts["files"], facts["bits_per_weight"], fresh)


def _convert(
    context: Context, cache: Cache, task: PackageTask, package: Path, advance: Advance
) -> dict[str, str]:
    """Make a package by the engine that is asked for; returns what is known of its digests."""
    from convert.package.mlpackage import Description

    checkpoint, job = context.checkpoint, task.job
    inputs, outputs = COMPONENTS[job.component].texts
    description = Description(**task.about, inputs=inputs, outputs=outputs)
    if job.engine == "apple":
        with deferred_interrupt():
            from convert.peer.engine import convert_job as convert_by_apple
        convert_by_apple(checkpoint, job, description, package)
        advance(sum(file.stat().st_size for file in package.rglob("weight.bin")))
        return {}
    with deferred_interrupt():
        from convert.package.native import convert_job
    weights = partial(cache.entry, "weights", task.weight_key)
    return convert_job(checkpoint, job, description, package, weights, advance)


def _about(context: Context, job: Job) -> dict[str, Any]:
    """What the model says of itself: Apple's words, the source, and the apps' settings."""
    checkpoint, repo = context.checkpoint, context.repo
    where = f"available at huggingface.co/{repo}" if repo else f"of {checkpoint.name}"
    return {
        "short": ABOUT,
        "author": f"Please refer to the Model Card {where}",
        "license": context.license or "Please refer to the Model Card",
        "version": f"{repo}@{context.commit}" if repo else checkpoint.name,
        "user": {
            **user_metadata(
                job.component,
                dict(checkpoint.part(job.component).config),
                dict(checkpoint.scheduler),
                dict(checkpoint.model_index),
            ),
            "com.github.apple.coremltools.version": version("coremltools"),
            "com.github.sdxl-coreml.version": __version__,
        },
    }


def _facts(task: PackageTask, package: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """Size and SHA-256 of a package's files, and its true bits per weight."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in package.rglob("*") if p.is_file()):
        name = str(path.relative_to(package))
        digest = known.get(name) or digest_file(path)
        files[name] = {"size": path.stat().st_size, "sha256": digest}
    size = sum(f["size"] for name, f in files.items() if name.endswith("weight.bin"))
    return {"files": files, "bits_per_weight": round(8 * size / task.weights, 3)}
