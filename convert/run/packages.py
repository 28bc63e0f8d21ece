"""One job → one finished package in the cache; the part of a run that worker processes do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert import __version__
from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.pipeline import user_metadata
from convert.components import COMPONENTS
from convert.files.cache import Cache, key_of
from convert.files.disk import digest_file
from convert.plan.plan import Job
from convert.process.code import code_digest
from convert.process.interrupts import deferred_interrupt
from convert.progress import Advance

if TYPE_CHECKING:
    from convert.package.mlpackage import Description

FOLDER = "model.mlpackage"
ABOUT = (
    "Stable Diffusion generates images conditioned on text and/or other images as input through "
    "the diffusion process. Please refer to https://arxiv.org/abs/2112.10752 for details."
)


@dataclass(frozen=True)
class BaseSource:
    """The checkpoint that supplied parts of another."""

    name: str
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
    base: BaseSource | None = None  # where the parts come from that the source lacks


@dataclass(frozen=True)
class Package:
    """A finished package."""

    path: Path
    files: Mapping[str, Mapping[str, Any]]  # size and sha256, by path in the package
    bits_per_weight: float
    fresh: bool  # made now, rather than found


def worker(context: Context) -> Any:
    """What a worker process does: a function of a job and of how to report its progress."""
    cache = Cache(context.cache).__enter__()  # left to the next cache if the process is killed
    return partial(make, context, cache)


def make(context: Context, cache: Cache, job: Job, advance: Advance) -> Package:
    """The package of a job, from the cache or made now; `advance` is told the weights' bytes."""
    fresh = False

    def fill(folder: Path) -> dict[str, Any]:
        nonlocal fresh
        fresh = True
        target = folder / FOLDER
        known = _convert(context, cache, job, target, advance)
        return _facts(context, job, target, known)

    path, facts = cache.entry("packages", key(context, job), fill)
    return Package(path / FOLDER, facts["files"], facts["bits_per_weight"], fresh)


def _convert(
    context: Context, cache: Cache, job: Job, package: Path, advance: Advance
) -> dict[str, str]:
    """Make a package by the engine that is asked for; returns what is known of its digests."""
    if job.engine == "apple":
        with deferred_interrupt():
            from convert.peer.engine import convert_job as convert_by_apple
        convert_by_apple(context.checkpoint, job, description(context, job), package)
        advance(sum(file.stat().st_size for file in package.rglob("weight.bin")))
        return {}
    with deferred_interrupt():
        from convert.package.native import convert_job
    weights = partial(cache.entry, "weights", weight_key(context, job))
    about = description(context, job)
    return convert_job(context.checkpoint, job, about, package, weights, advance)


def description(context: Context, job: Job) -> Description:
    """What the model says of itself, its inputs and its outputs."""
    from convert.package.mlpackage import Description

    inputs, outputs = COMPONENTS[job.component].texts
    return Description(**describe(context, job), inputs=inputs, outputs=outputs)


def key(context: Context, job: Job) -> str:
    """The name of a job's package in the cache: all that determines its bytes."""
    settings = {
        **vars(job),
        "resolution": str(job.resolution),
        "compression": job.compression.to_json(),
    }
    return key_of([settings, describe(context, job), _sources(context, job), _code(job)])


def weight_key(context: Context, job: Job) -> str:
    """The name of its weight file in the cache."""
    component, compression, precision, deployment = job.weights
    settings = [component, compression.to_json(), precision, deployment]
    return key_of([settings, _sources(context, job), _code(job)])


def _code(job: Job) -> str:
    return code_digest("apple" if job.engine == "apple" else "convert")


def _sources(context: Context, job: Job) -> list[dict[str, Any]]:
    """What a job reads: its tensors, and the digests of the configs."""
    configs = {n: digest for n, digest in context.digests.items() if n.endswith("config.json")}
    return [configs, context.checkpoint.tensor_keys(job.component, context.digests)]


def describe(context: Context, job: Job) -> dict[str, Any]:
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


def _facts(context: Context, job: Job, package: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """Size and SHA-256 of a package's files, and its true bits per weight."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in package.rglob("*") if p.is_file()):
        name = str(path.relative_to(package))
        digest = known.get(name) or digest_file(path)
        files[name] = {"size": path.stat().st_size, "sha256": digest}
    weights = sum(t.size for t in context.checkpoint.component_tensors(job.component).values())
    size = sum(f["size"] for name, f in files.items() if name.endswith("weight.bin"))
    return {"files": files, "bits_per_weight": round(8 * size / weights, 3)}
